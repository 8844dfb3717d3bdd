"""The card's snippets for frameworks that build on sentence-transformers, one after the other in one process.

    make interop; python -m pytest tests/publish/test_frameworks.py -q

They ask for another huggingface_hub than this package, so they have a virtual environment of their own.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from fresh_process import run
from loopback_hub import LoopbackHub
from publishing import ROOT, config_like_bert, contents, save_model
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tinybert_hf import TinyBertModel, encode
from tinybert_hf.publish.folder import build_folder

pytestmark = pytest.mark.interop
PYTHON = ROOT / ".interop-frameworks" / "bin" / "python"


FRAMEWORKS = ("langchain_huggingface", "llama_index", "haystack")
POOLINGS = ("mean", "cls")

# Runs snippets, and prints what each of them embeds, or how it failed.
RUN = """
import json, sys, traceback

answers = {}
for name, snippet in json.load(open("snippets.json")).items():
    try:
        exec(snippet, found := {})
        answers[name] = [list(found["query"]), list(found["passage"])]
    except Exception:
        answers[name] = traceback.format_exc()
print(json.dumps(answers))
"""


def snippet_for(framework: str, folder: Path) -> str:
    found = re.findall(r"```py\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    (snippet,) = (code for code in found if framework in code)
    return snippet


@pytest.fixture(scope="module")
def published(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An encoder of each pooling."""
    folder = tmp_path_factory.mktemp("published")
    for pooling in POOLINGS:
        trained = save_model(
            TinyBertModel(config_like_bert(tokenizer, pooling)), tokenizer, folder / f"{pooling}-trained"
        )
        build_folder(trained, folder / pooling, f"tester/{pooling}")
    return {pooling: folder / pooling for pooling in POOLINGS}


@pytest.fixture(scope="module")
def answers(published: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the snippets of each framework and each pooling embed; they load the encoders from the Hub."""
    assert PYTHON.exists(), f"{PYTHON} is missing: run `make interop`."
    home = tmp_path_factory.mktemp("home")
    snippets = {f"{name}, {of}": snippet_for(name, published[of]) for name in FRAMEWORKS for of in POOLINGS}
    (home / "snippets.json").write_text(json.dumps(snippets))
    with LoopbackHub() as hub:
        for pooling, folder in published.items():
            hub.add_repo("model", f"tester/{pooling}", contents(folder))
        env = hub.env(home) | {
            "HAYSTACK_TELEMETRY_ENABLED": "False",
            "LLAMA_INDEX_CACHE_DIR": str(home / "llama_index"),  # it keeps models apart from all others
        }
        printed = run([PYTHON, "-c", RUN], env, home)
        assert hub.unexpected == []
    return json.loads(printed.splitlines()[-1])


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_framework_gives_the_same_embeddings(
    published: dict[str, Path], answers: dict[str, Any], framework: str, pooling: str
) -> None:
    folder, answer = published[pooling], answers[f"{framework}, {pooling}"]
    assert not isinstance(answer, str), answer
    shown = [*json.loads((folder / "examples.json").read_text())[0].values()]  # a query, a passage
    expected = encode(TinyBertModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder), shown)
    torch.testing.assert_close(torch.tensor(answer), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_framework_needs_none_of_our_code(published: dict[str, Path], framework: str) -> None:
    assert not any("trust_remote_code" in snippet_for(framework, folder) for folder in published.values())
