"""The retrievers of examples/ for frameworks, each in a process of the environment that holds them.

make interop; python -m pytest tests/serving/test_retrievers.py -q
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fresh_process import run
from publishing import ROOT
from serving_setup import build_index, serve
from transformers import PreTrainedTokenizerBase

from tinybert_hf import SearchIndex
from tinybert_hf.serving.app import Service

pytestmark = pytest.mark.interop
PYTHON = ROOT / ".interop-frameworks" / "bin" / "python"


@pytest.fixture(scope="module")
def index(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> SearchIndex:
    return SearchIndex(build_index(tmp_path_factory.mktemp("retrieved"), tokenizer))


@pytest.fixture(scope="module")
def address(index: SearchIndex) -> Iterator[str]:
    with serve(Service(index, None)) as address:
        yield address


@pytest.mark.parametrize("framework", ["langchain", "llama_index", "haystack"])
def test_a_framework_retrieves_what_the_index_finds(
    index: SearchIndex, address: str, framework: str, tmp_path: Path
) -> None:
    assert PYTHON.exists(), f"{PYTHON} is missing: run `make interop`."
    env = os.environ | {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1", "HAYSTACK_TELEMETRY_ENABLED": "False"}
    env.pop("PYTHONPATH", None)
    command = [PYTHON, ROOT / "examples" / f"{framework}_retriever.py", address, "play music"]
    printed = run([str(part) for part in command], env, tmp_path).splitlines()[-3:]
    hits = index.search("play music", 3)
    assert [line.split()[0] for line in printed] == [hit["id"] for hit in hits]
    assert all(hit["text"] in line for hit, line in zip(hits, printed, strict=True))
