"""What a user can mend is one line and a status; a bug keeps its traceback.

python -m pytest tests/cli/test_errors.py -q
"""

import errno
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from command_line import Done, tinybert

from tinybert_hf.cli import search
from tinybert_hf.errors import InputError, UnreadableError

SEARCH = ["search", "--model", "m", "--query", "q", "--chunks", "-"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "retrieval", "--query_colum", "x"],
            "Unknown option: --query_colum. Did you mean --query_column? See: tinybert train retrieval --help",
        ),
        (
            ["tran"],
            'Unknown command "tran". Did you mean "train"? Available commands: train, evaluate, mine, publish, search, '
            "index, serve, mcp, ... See: tinybert --help",
        ),
        (
            ["index", "serch"],
            'Unknown command "serch". Did you mean "search"? Available commands: build, add, sync, search, info. See: tinybert '
            "index --help",
        ),
        (
            ["search", "--model", "m", "--query", "q"],
            'Command "search" parameter --chunks requires an argument. See: tinybert',
        ),
        (
            ["search", "--model", "m", "--query", "q", "--chunk", "c"],
            'Command "search" parameter --chunks requires an argument. Did you mean --chunks instead of --chunk? See:',
        ),
        (["search", "--model"], 'Command "search" parameter --model requires an argument. See: tinybert search --help'),
        (
            ["train", "retrieval", "--matryoshka_dims"],
            'Command "train retrieval" parameter --matryoshka_dims requires at least',
        ),
        ([*SEARCH, "more"], "Nothing is expected at 'more'. See: tinybert search --help"),
        ([*SEARCH, "--top_k", "many"], 'Invalid value for --top_k: unable to convert "many" into int. See:'),
        (
            ["index", "search", "--index", "i", "--query", "q", "--mode", "hybird"],
            'Invalid value "hybird" for --mode. Choose from: "dense", "bm25", "hybrid". Did you mean "hybrid"? See:',
        ),
        (
            ["convert", "model.pt", "tokenizer.json"],
            'Command "convert" parameter OUT requires an argument. See: tinybert convert --help',
        ),
    ],
)
def test_a_wrong_command_line_is_one_line_with_the_help_to_read(arguments: list[str], message: str) -> None:
    done = tinybert(*arguments)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"error: {message}")
    assert done.err.count("\n") == 1 and done.err.endswith("--help\n")


def ends_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Status and message of a command that raises this."""

    def read_rows(*path: object, **options: object) -> list[dict[str, str]]:
        raise error

    monkeypatch.setattr(search, "read_rows", read_rows)
    done = tinybert(*SEARCH)
    assert done.out == ""
    return done.status, done.err


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (InputError("It has no column 'a'."), 1, "error: It has no column 'a'.\n"),
        (UnreadableError("one\n  line\n"), 1, "error: one line\n"),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out.json"),
            1,
            "error: [Errno 28] No space left on device: 'out.json'\n",
        ),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    error: BaseException, status: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ends_with(error, monkeypatch) == (status, message)


@pytest.mark.parametrize(
    "bug", [ValueError("not enough values to unpack"), OSError("of a library"), ModuleNotFoundError("yaml")]
)
def test_a_bug_keeps_its_traceback(bug: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(type(bug), match=str(bug)):
        ends_with(bug, monkeypatch)


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """A command line with `tinybert` for this Python's."""
    command = f'tinybert() {{ "{sys.executable}" -m tinybert_hf "$@"; }}; {command}'
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=False)


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    done = shell("tinybert recipes full | true; exit ${PIPESTATUS[0]}")
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full is needed")
def test_a_full_disk_is_one_line() -> None:
    done = shell("tinybert recipes > /dev/full")
    assert (done.returncode, done.stderr) == (1, "error: [Errno 28] No space left on device\n")


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tinybert_hf", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == tinybert("--version").out == f"{version('tinybert_hf')}\n"


EXTRAS = {
    "train retrieval --data d.csv": "train",
    "train sentiment --data d.csv": "train",
    "evaluate --model m --data d": "train",
    "mine --data d.csv --output_file o.jsonl": "train",
    "publish --model m --output_dir o": "publish",
    "index build --index i --model m --data d.jsonl": "index",
    "index search --index i --query q": "index",
}


@pytest.fixture(scope="module")
def without_libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    """How these commands end, one after the other in one process, for who has neither datasets nor jinja2."""
    code = f"""
import json, sys
sys.modules["datasets"] = sys.modules["jinja2"] = None  # an import of it fails
from command_line import tinybert
print(json.dumps([tinybert(*command.split()) for command in {[*EXTRAS]!r}]))
"""
    folder = tmp_path_factory.mktemp("empty")
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, check=True)
    return dict(zip(EXTRAS, (Done(*ended) for ended in json.loads(done.stdout)), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("command", "extra"), EXTRAS.items())
def test_a_library_that_is_not_installed_is_named_with_its_extra(
    without_libraries: dict[str, Done], command: str, extra: str
) -> None:
    done = without_libraries[command]
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith("error: ") and done.err.count("\n") == 1
    assert done.err.endswith(f"pip install 'tinybert_hf[{extra}]'\n")


NOWHERE = "~nobody-has-this-name/x.csv"


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "retrieval", "--data", NOWHERE],
        ["train", "retrieval", "--documents", NOWHERE],
        ["train", "retrieval", "--data", "pairs.csv", "--eval_data", NOWHERE],
        ["train", "retrieval", f"{NOWHERE}.yaml"],
        ["train", "sentiment", "--data", NOWHERE, "--eval_split", "validation"],
        ["evaluate", "--model", "m", "--data", NOWHERE],
        ["mine", "--data", NOWHERE, "--output_file", "negatives.jsonl"],
        ["search", "--model", "m", "--query", "q", "--chunks", NOWHERE],
        ["search", "--model", NOWHERE, "--query", "q", "--chunks", "pairs.csv"],
        ["index", "search", "--index", NOWHERE, "--query", "q"],
        ["publish", "--model", NOWHERE, "--output_dir", "built"],
    ],
)
def test_the_home_of_nobody_is_a_path_that_is_not_there(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for the shell, which leaves such a path as it is."""
    (tmp_path / "pairs.csv").write_text("query,answer\nmusic,play it\n")
    monkeypatch.chdir(tmp_path)
    done = tinybert(*arguments)
    assert done.status == 1
    assert "~nobody-has-this-name" in done.err.splitlines()[-1]
    assert "Traceback" not in done.err and done.err.splitlines()[-1].startswith("error: ")
