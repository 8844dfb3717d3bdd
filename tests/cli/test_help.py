"""Help is complete, plain and immediate.

python -m pytest tests/cli/test_help.py -q
"""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import tinybert

from tinybert_hf.cli import app

COMMANDS = [
    [],
    ["train"],
    ["train", "sentiment"],
    ["train", "retrieval"],
    ["evaluate"],
    ["mine"],
    ["publish"],
    ["search"],
    ["index"],
    ["index", "build"],
    ["index", "add"],
    ["index", "search"],
    ["index", "info"],
    ["serve"],
    ["mcp"],
    ["convert"],
    ["recipes"],
]
HEAVY = {"torch", "transformers", "datasets", "accelerate", "numpy"}


def help_of(*command: str) -> str:
    done = tinybert(*command, "--help")
    assert (done.status, done.err) == (0, "")
    return done.out


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_is_plain_and_names_each_flag_once(command: list[str]) -> None:
    text = help_of(*command)
    assert text.startswith(" ".join(["Usage: tinybert", *command]))
    flags = re.findall(r"^    (--\w+)", text, flags=re.MULTILINE)
    assert len(flags) == len(set(flags))
    assert not re.search(r"default: (None|False|\[\])|╭|│", text)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_examples_of_the_help_are_right_command_lines(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("seed: 1\n")
    examples = re.findall(r"^    (?:cat \S+ \| )?tinybert (.+)$", help_of(*command), flags=re.MULTILINE)
    assert examples
    for example in examples:
        words = shlex.split(example, comments=True)
        words = words[: words.index(">")] if ">" in words else words
        app.parse_args(words, exit_on_error=False, print_error=False)  # raises where it is none


def test_flags_stand_in_groups_with_the_defaults_that_say_something() -> None:
    text = help_of("train", "retrieval")
    groups = [line for line in text.splitlines() if re.match(r"   [A-Z][a-z ]+$", line)]
    assert [group.strip() for group in groups] == [
        "Arguments",
        "Data",
        "Model",
        "Schedule",
        "Loss and negatives",
        "Memory",
        "Output",
    ]
    assert re.search(r"--learning_rate(?: FLOAT)? +Peak of the learning rate.\s+\[default:\s+0.0001\]", text)
    memory = text.split("   Memory ")[1].split("   Output ")[0]
    assert "  --activation_budget_tokens" in memory
    assert "[required]" in help_of("search")


@pytest.mark.parametrize("stage", ["sentiment", "retrieval"])
def test_both_stages_know_the_shared_flags(stage: str) -> None:
    text = help_of("train", stage)
    for flag in ("--model", "--data", "--output_dir", "--max_steps", "--seed", "--resume_from_checkpoint"):
        assert re.search(rf"^    {flag}\s", text, flags=re.MULTILINE), flag


def test_examples_are_printed_as_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    text = help_of("publish")
    assert (
        "\n    tinybert publish --model outputs/retrieval --repo_id OWNER/NAME --onnx --space OWNER/NAME-demo  # and a page\n"
        in text
    )
    flags = text.split("   Parameters ")[1].splitlines()
    assert max(map(len, flags)) <= 60


IMMEDIATE = [
    *([*command, "--help"] for command in COMMANDS),
    [],
    ["--version"],
    ["tran"],
    ["recipes"],
    ["search", "--mod", "x"],
    ["train", "retrieval", "minilm", "--sede", "1"],
    ["train", "retrieval", "nonesuch"],
    ["train", "retrieval", "--seed", "many"],
    ["publish", "--model", "m"],
    ["index", "search", "--index", "i", "--query", "q", "--filter", "["],
    ["serve", "i", "--host", "0.0.0.0"],
]


@pytest.fixture(scope="module")
def imported() -> dict[str, set[str]]:
    """What each of these command lines imports that those before it did not, run one after the other in one process."""
    code = f"""
import json, sys
from tinybert_hf.cli import main
known, imported = set(), {{}}
for arguments in {IMMEDIATE!r}:
    try:
        main(arguments)
    except SystemExit:
        pass
    imported[" ".join(arguments)] = [name for name in sys.modules if name not in known]
    known.update(sys.modules)
print("\\n" + json.dumps(imported))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = {line: set(names) for line, names in json.loads(done.stdout.splitlines()[-1]).items()}
    assert "tinybert_hf.cli" in set().union(*found.values())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("arguments", IMMEDIATE, ids=" ".join)
def test_help_and_wrong_command_lines_import_nothing_heavy(imported: dict[str, set[str]], arguments: list[str]) -> None:
    assert not HEAVY & imported[" ".join(arguments)]
