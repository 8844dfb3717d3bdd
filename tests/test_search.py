"""The search command prints a ranking, and says in one line what was wrong with its input.

python -m pytest tests/test_search.py -q
"""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TEXTS
from fresh_process import NO_NETWORK
from transformers import BertConfig

from tinybert_hf.search import load_search_pipeline, main, read_chunks

QUERY = "play some music"


def run_search(*arguments: str | Path, home: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tinybert_hf.search", *map(str, arguments)],
        input=stdin,
        env=os.environ | NO_NETWORK | {"HF_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def chunks_file(tmp_path: Path) -> Path:
    path = tmp_path / "chunks.txt"
    path.write_text("\n\n".join(f"  {text}\t" for text in TEXTS) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def search_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command in this process: its exit status or message, and what it printed."""

    def run(*arguments: str | Path, stdin: str = "") -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["search", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        status: object = 0
        try:
            main()
        except SystemExit as error:
            status = error.code
        return status, capsys.readouterr().out

    return run


# ---- In a process of its own ----


def test_the_command_prints_a_readable_ranking(model_folder: Path, chunks_file: Path, tmp_path: Path) -> None:
    done = run_search(
        "--model", model_folder, "--query", QUERY, "--chunks", chunks_file, "--top_k", "2", home=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    expected = load_search_pipeline(model_folder)(QUERY, TEXTS, top_k=2)
    assert done.stdout.splitlines() == [
        f"  {rank}. {result['score']:.3f}  {result['text']}" for rank, result in enumerate(expected, start=1)
    ]


def test_json_from_standard_input_is_the_ranking_of_the_pipeline(model_folder: Path, tmp_path: Path) -> None:
    texts = [*TEXTS, "Ärchive läsen ☃"]
    done = run_search(
        *("--model", model_folder, "--query", QUERY, "--chunks", "-", "--top_k", "100", "--json"),
        home=tmp_path,
        stdin="\n".join(texts),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == load_search_pipeline(model_folder)(QUERY, texts, top_k=100)
    assert "Ärchive läsen ☃" in done.stdout


def test_a_model_that_is_not_there_is_a_message(chunks_file: Path, tmp_path: Path) -> None:
    missing = tmp_path / "no-model"
    done = run_search("--model", missing, "--query", QUERY, "--chunks", chunks_file, home=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"error: Could not load the model {missing} (no such folder here) from the Hub: "
    )
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


# ---- In this process ----


def test_a_model_of_another_kind_is_a_message(search_here, chunks_file: Path, tmp_path: Path) -> None:
    BertConfig(vocab_size=8, hidden_size=8, num_attention_heads=1).save_pretrained(tmp_path / "bert")
    status, _ = search_here("--model", tmp_path / "bert", "--query", QUERY, "--chunks", chunks_file)
    assert str(status).startswith(f"error: Could not load the model {tmp_path / 'bert'} from this folder: ")
    assert str(status).endswith("it is a bert model, and search needs a tinybert model.")


def test_a_file_that_is_not_there_is_a_message(search_here, model_folder: Path, tmp_path: Path) -> None:
    missing = tmp_path / "chunks.txt"
    status, printed = search_here("--model", model_folder, "--query", QUERY, "--chunks", missing)
    assert status == f"error: [Errno 2] No such file or directory: '{missing}'"
    assert printed == ""


@pytest.mark.parametrize("content", ["", "\n  \n\t\n"])
def test_a_file_without_text_is_a_message(
    search_here, model_folder: Path, tmp_path: Path, content: str
) -> None:
    path = tmp_path / "chunks.txt"
    path.write_text(content)
    status, printed = search_here("--model", model_folder, "--query", QUERY, "--chunks", path)
    assert str(status).startswith("error: There are no chunks to search.")
    assert search_here("--model", model_folder, "--query", QUERY, "--chunks", "-", stdin=content)[0] == status
    assert printed == ""


def test_a_file_that_is_no_text_is_a_message(search_here, model_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "chunks.bin"
    path.write_bytes(b"\xff\xfe\x00binary")
    status, _ = search_here("--model", model_folder, "--query", QUERY, "--chunks", path)
    assert str(status).startswith("error: ")


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--query", " "), "error: query is empty: ' '"),
        (("--query", QUERY, "--top_k", "0"), "error: top_k must be a positive integer, got 0"),
    ],
)
def test_a_wrong_value_is_a_message(
    search_here, model_folder: Path, chunks_file: Path, flags: tuple[str, ...], message: str
) -> None:
    status, _ = search_here("--model", model_folder, "--chunks", chunks_file, *flags)
    assert str(status).startswith(message)


def test_a_missing_flag_ends_with_status_2(search_here, model_folder: Path) -> None:
    assert search_here("--model", model_folder, "--query", QUERY)[0] == 2


def test_chunks_are_the_lines_that_are_not_blank(chunks_file: Path) -> None:
    assert read_chunks(str(chunks_file)) == TEXTS
