"""The search command prints a ranking, and says in one line what was wrong with its input.

python -m pytest tests/cli/test_search_command.py -q
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from command_line import tinybert
from conftest import TEXTS
from fresh_process import NO_NETWORK
from training_run import ROOT
from transformers import MPNetConfig, PreTrainedTokenizerBase

from tinybert_hf import TinyBertConfig, TinyBertModel, encoding
from tinybert_hf.cli.terminal import print_hits
from tinybert_hf.encoding import load_search_pipeline
from tinybert_hf.tokenization import save_tokenizer

QUERY = "play some music"


@pytest.fixture
def chunks_file(tmp_path: Path) -> Path:
    path = tmp_path / "chunks.txt"
    path.write_text("\n\n".join(f"  {text}\t" for text in TEXTS) + "\n", encoding="utf-8")
    return path


# ---- In a process of its own ----

MORE_TEXTS = [*TEXTS, "Ärchive läsen ☃"]  # on standard input


class Searched(NamedTuple):
    model: Path
    done: subprocess.CompletedProcess[str]
    modules: set[str]


@pytest.fixture(scope="module")
def searched(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """A search in standard input, which prints a line of JSON, then one in a file; without a network."""
    folder = tmp_path_factory.mktemp("searched")
    TinyBertModel(
        TinyBertConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64
        )
    ).save_pretrained(folder / "model")
    save_tokenizer(tokenizer, folder / "model")
    (folder / "chunks.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    code = f"""
import sys
from pathlib import Path
from tinybert_hf.cli import main
shared = ["search", "--model", "model", "--query", {QUERY!r}]
main([*shared, "--chunks", "-", "--top_k", "100", "--json"])
main([*shared, "--chunks", "chunks.txt", "--top_k", "2"])
Path("modules.txt").write_text("\\n".join(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        input="\n".join(MORE_TEXTS),
        cwd=folder,
        env=os.environ | NO_NETWORK | {"HF_HOME": str(folder), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return Searched(folder / "model", done, set((folder / "modules.txt").read_text().splitlines()))


@pytest.mark.slow
def test_the_command_prints_a_readable_ranking(searched: Searched) -> None:
    expected = load_search_pipeline(searched.model)(QUERY, TEXTS, top_k=2)
    assert searched.done.stdout.splitlines()[1:] == [
        f"  {rank}. {result['score']:.3f}  {result['text']}" for rank, result in enumerate(expected, start=1)
    ]


@pytest.mark.slow
def test_json_from_standard_input_is_the_ranking_of_the_pipeline(searched: Searched) -> None:
    expected = load_search_pipeline(searched.model)(QUERY, MORE_TEXTS, top_k=100)
    printed = searched.done.stdout.splitlines()[0]
    # Another process may round otherwise in the last place.
    assert json.loads(printed) == [a | {"score": pytest.approx(a["score"], abs=1e-6)} for a in expected]
    assert MORE_TEXTS[-1] in printed


@pytest.mark.slow
def test_a_search_imports_nothing_that_it_does_not_need(searched: Searched) -> None:
    """Those among the installed packages that take long to import; scipy and accelerate come with transformers."""
    unneeded = {"bm25s", "datasets", "ir_measures", "pandas", "pyarrow", "sklearn", "tensorboard", "torchvision"}
    assert "transformers" in searched.modules
    assert not unneeded & searched.modules


# ---- In this process ----


def test_a_model_that_is_not_there_is_a_message(chunks_file: Path, tmp_path: Path) -> None:
    missing = tmp_path / "no-model"
    done = tinybert("search", "--model", missing, "--query", QUERY, "--chunks", chunks_file)
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith("error: ") and str(missing) in done.err
    assert done.err.count("\n") == 1


def test_a_model_of_another_kind_is_a_message(
    chunks_file: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    folder = tmp_path / "mpnet"
    MPNetConfig(vocab_size=8, hidden_size=8, num_attention_heads=1).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    done = tinybert("search", "--model", folder, "--query", QUERY, "--chunks", chunks_file)
    assert done.status == 1
    assert done.err.startswith(f"error: Could not load the model {folder} from this folder: it is a mpnet model; ")
    assert done.err.endswith("what works: tinybert, bert, camembert, distilbert, roberta, xlm-roberta.\n")


def test_a_file_that_is_not_there_is_a_message(model_folder: Path, tmp_path: Path) -> None:
    missing = tmp_path / "chunks.txt"
    done = tinybert("search", "--model", model_folder, "--query", QUERY, "--chunks", missing)
    assert done == (1, "", f"error: {missing} does not exist (looked in {Path.cwd()}).\n")


@pytest.mark.parametrize("content", ["", "\n  \n\t\n"])
def test_a_file_without_text_is_a_message(model_folder: Path, tmp_path: Path, content: str) -> None:
    path = tmp_path / "chunks.txt"
    path.write_text(content)
    flags = ["--model", model_folder, "--query", QUERY, "--chunks"]
    assert tinybert("search", *flags, path) == (1, "", f"error: {path} has no text.\n")
    assert tinybert("search", *flags, "-", stdin=content) == (1, "", "error: - has no text.\n")


def test_a_file_that_is_no_text_is_a_message(model_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "chunks.bin"
    path.write_bytes("text\nFür Möbel und größere Türen".encode("cp1252"))
    done = tinybert("search", "--model", model_folder, "--query", QUERY, "--chunks", path)
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith(f"error: {path} is not in UTF-8 (line 2). With --encoding cp1252 this ")
    flags = ["--encoding", "cp1252", "--json"]
    done = tinybert("search", "--model", model_folder, "--query", QUERY, "--chunks", path, *flags)
    assert {hit["text"] for hit in json.loads(done.out)} == {"text", "Für Möbel und größere Türen"}


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--query", " "), "error: query is empty: ' '"),
        (("--query", QUERY, "--top_k", "0"), "error: top_k must be a positive integer, got 0"),
        (("--query", QUERY, "--rerank", "-1"), "error: rerank must be 0 or a positive integer, got -1"),
    ],
)
def test_a_wrong_value_is_a_message(
    model_folder: Path, chunks_file: Path, flags: tuple[str, ...], message: str
) -> None:
    done = tinybert("search", "--model", model_folder, "--chunks", chunks_file, *flags)
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith(message)


def test_a_query_may_begin_with_a_dash(model_folder: Path, chunks_file: Path) -> None:
    done = tinybert("search", "--model", model_folder, "--chunks", chunks_file, "--query", "-5 degrees")
    assert done.status == 0


def test_hits_are_ranked_anew_and_marked_as_the_pipeline_does_it(model_folder: Path, chunks_file: Path) -> None:
    flags = ["--model", model_folder, "--query", QUERY, "--chunks", chunks_file, "--rerank", "5", "--highlight"]
    done = tinybert("search", *flags, "--json")
    expected = load_search_pipeline(model_folder)(QUERY, TEXTS, rerank=5, highlight=True)
    marks = [{"highlight": list(hit["highlight"]), "score": pytest.approx(hit["score"], abs=1e-6)} for hit in expected]
    assert json.loads(done.out) == [hit | mark for hit, mark in zip(expected, marks, strict=True)]
    assert "\033" not in tinybert("search", *flags).out, "bold is for terminals"


@pytest.mark.parametrize("mark, shown", [((2, 4), "ab\033[1mcd\033[0me"), ((0, 0), "abcde")])
def test_on_a_terminal_the_sentence_is_bold(
    mark: tuple[int, int], shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    print_hits([{"id": "x", "score": 0.5, "text": "abcde", "highlight": mark}], json=False)
    assert capsys.readouterr().out == f"  1. 0.500  x: {shown}\n"


def test_a_score_that_is_no_number_is_never_json(
    model_folder: Path, chunks_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = [{"index": 0, "score": float("nan"), "text": "a"}]
    monkeypatch.setattr(encoding, "load_search_pipeline", lambda model: lambda *arguments: results)
    done = tinybert("search", "--model", "m", "--query", QUERY, "--chunks", chunks_file, "--json")
    assert (done.status, done.out) == (1, "")
    assert done.err == "error: A result is not a number. The model's weights must be damaged.\n"
