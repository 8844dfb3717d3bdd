"""examples/search_without_torch.py finds what the package finds, in a process that can import neither torch nor transformers."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from serving_setup import RECORDS, save_model
from training_run import ROOT
from transformers import PreTrainedTokenizerBase

from tinybert_hf import SearchIndex, load_search_pipeline
from tinybert_hf.onnx import FP32_FILE, INT8_FILE, OnnxEncoder
from tinybert_hf.pipeline_tinybert import SemanticSearchPipeline
from tinybert_hf.publish.folder import build_folder

pytestmark = pytest.mark.slow
BLOCKED = "import runpy, sys; sys.modules |= dict.fromkeys(('torch', 'transformers', 'tinybert_hf')); "
QUERY = "play a song"
LINES = [record["text"] for record in RECORDS] + ["a very long line of many words " * 9]


@pytest.fixture(scope="module")
def published(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("light")
    prompts = {"query": "query: ", "document": "passage: "}
    return build_folder(save_model(folder / "model", tokenizer, prompts=prompts), folder / "published", "m", onnx=True)


@pytest.fixture(autouse=True)
def fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the files compute, also where the hardware has bf16."""
    monkeypatch.setattr("tinybert_hf.encoding.fast_dtype", lambda device: torch.float32)


def search(*arguments: object) -> list[tuple[float, str]]:
    """Scores and texts that the example prints."""
    script = str(ROOT / "examples" / "search_without_torch.py")
    code = f"{BLOCKED} sys.argv = {[script, *map(str, arguments)]!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    return [(float(score), text) for _, score, text in rows]


def expected(hits: list[dict]) -> list[tuple[float, str]]:
    return [(pytest.approx(hit["score"], abs=1e-3), hit["text"].strip()) for hit in hits]


def test_the_lines_of_a_file_rank_as_with_the_same_model_in_the_package(published: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("\n\n".join(LINES), encoding="utf-8")
    own = load_search_pipeline(published)
    asked = "--query", QUERY, "--chunks", tmp_path / "lines.txt", "--top_k", 6
    assert search(published, *asked, "--file", FP32_FILE) == expected(own(QUERY, LINES, top_k=6))
    int8 = SemanticSearchPipeline(model=OnnxEncoder(published, INT8_FILE), tokenizer=own.tokenizer)
    assert search(published, *asked) == expected(int8(QUERY, LINES, top_k=6))


def test_an_index_is_searched_as_by_the_package(published: Path, tmp_path: Path) -> None:
    index = SearchIndex(tmp_path / "my.index", published)
    index.add(RECORDS)
    found = search(published, "--query", QUERY, "--index", tmp_path / "my.index", "--file", FP32_FILE)
    assert found == expected(index.search(QUERY))
