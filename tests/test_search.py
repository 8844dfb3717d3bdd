"""The search command prints a ranking, and says in one line what was wrong with its input.

python -m pytest tests/test_search.py -q
"""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import TEXTS
from fresh_process import NO_NETWORK, run_python
from training_run import ROOT, train
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
    expected = load_search_pipeline(model_folder)(QUERY, texts, top_k=100)
    # Another process may round otherwise in the last place.
    assert json.loads(done.stdout) == [a | {"score": pytest.approx(a["score"], abs=1e-6)} for a in expected]
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


def test_a_search_imports_nothing_that_it_does_not_need(
    model_folder: Path, chunks_file: Path, tmp_path: Path
) -> None:
    """Those among the installed packages that take long to import; scipy and accelerate come with transformers."""
    unneeded = {
        "bm25s",
        "datasets",
        "ir_measures",
        "pandas",
        "pyarrow",
        "sklearn",
        "tensorboard",
        "torchvision",
    }
    flags = ["--model", str(model_folder), "--query", QUERY, "--chunks", str(chunks_file)]
    printed = run_python(
        f"""
        import sys
        from tinybert_hf.search import main
        sys.argv = ["search", *{flags!r}]
        main()
        print(*sys.modules, sep="\\n")
        """,
        home=tmp_path,
        env=os.environ | NO_NETWORK | {"HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        without_package=False,
    )
    assert "transformers" in printed.splitlines()
    assert not unneeded & set(printed.splitlines())


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


# ---- Precision ----


@pytest.mark.parametrize(
    "capabilities, expected",
    [
        ({"avx2": True, "avx512_bf16": False}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"bf16": True}, torch.bfloat16),
    ],
)
def test_the_weights_are_bf16_where_the_processor_has_it(
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capabilities: dict[str, bool],
    expected: torch.dtype,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(
        "tinybert_hf.search.process_state", lambda: SimpleNamespace(device=torch.device("cpu"))
    )
    with caplog.at_level("INFO", logger="tinybert_hf.search"):
        search = load_search_pipeline(model_folder)
    assert search.model.dtype == expected
    assert f"cpu in {expected}" in caplog.text
    assert search(QUERY, [*TEXTS, QUERY], top_k=1)[0]["text"] == QUERY
    assert load_search_pipeline(model_folder, dtype=torch.float64).model.dtype == torch.float64


# ---- Two processes ----


SCRIPT = """
import sys
import torch
from accelerate import PartialState
from tinybert_hf.search import encode_by_processes, load_search_pipeline

def main():
    folder, *texts = sys.argv[1:]
    search = load_search_pipeline(folder, dtype=torch.float32)
    assert PartialState().num_processes == 2, "this test would be vacuous"
    rows = [encode_by_processes(search.model, search.tokenizer, texts[:number]) for number in (5, 1, 0)]
    torch.save(rows, f"{folder}/{PartialState().process_index}.pt")
"""


def test_two_processes_both_return_the_rows_of_one(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shared_encoding.py").write_text(SCRIPT)
    monkeypatch.syspath_prepend(tmp_path)
    train("shared_encoding", [str(model_folder), *TEXTS], tmp_path / "log", num_processes=2)
    search = load_search_pipeline(model_folder, dtype=torch.float32)
    for process in (0, 1):
        for number, rows in zip((5, 1, 0), torch.load(model_folder / f"{process}.pt"), strict=True):
            torch.testing.assert_close(rows, search.encode(TEXTS[:number]), rtol=1e-5, atol=1e-6)
