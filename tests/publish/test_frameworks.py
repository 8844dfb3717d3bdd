"""The card's snippets for frameworks that build on sentence-transformers, each in a process of its own.

    make interop; python -m pytest tests/publish/test_frameworks.py -q

They ask for another huggingface_hub than this package, so they have a virtual environment of their own.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from fresh_process import run
from loopback_hub import LoopbackHub
from publishing import REPO, ROOT, contents
from transformers import AutoTokenizer

from tinybert_hf import TinyBertModel, encode
from tinybert_hf.publish.folder import build_folder
from tinybert_hf.publish.model_card import PASSAGES, QUERY

pytestmark = pytest.mark.interop
PYTHON = ROOT / ".interop-frameworks" / "bin" / "python"


@pytest.mark.parametrize("framework", ["langchain_huggingface", "llama_index", "haystack"])
def test_a_framework_gives_the_same_embeddings(
    encoder_like_bert: Path, tmp_path: Path, hub: LoopbackHub, framework: str
) -> None:
    assert PYTHON.exists(), f"{PYTHON} is missing: run `make interop`."
    folder = build_folder(encoder_like_bert, tmp_path / "published", REPO)
    hub.add_repo("model", REPO, contents(folder))
    found = re.findall(r"```py\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    (snippet,) = (code for code in found if framework in code)
    env = hub.env(tmp_path) | {
        "HAYSTACK_TELEMETRY_ENABLED": "False",
        "LLAMA_INDEX_CACHE_DIR": str(tmp_path / "llama_index"),  # it keeps models apart from all others
    }
    assert "trust_remote_code" not in snippet
    code = f"{snippet}\nimport json; print(json.dumps([list(query), list(passage)]))"
    printed = run([PYTHON, "-c", code], env, tmp_path)
    embeddings = torch.tensor(json.loads(printed.splitlines()[-1]))
    expected = encode(
        TinyBertModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder), [QUERY, PASSAGES[0]]
    )
    torch.testing.assert_close(embeddings, expected, atol=1e-5, rtol=0)
