"""The three scripts are the commands of the same names.

python -m pytest tests/cli/test_scripts.py -q
"""

import re
import shlex
import subprocess
import sys
from importlib import import_module

import pytest
from command_line import tinybert
from training_run import ROOT

from tinybert_hf.cli import app

SCRIPTS = {
    "train_sentiment": ["train", "sentiment"],
    "train_retrieval": ["train", "retrieval"],
    "push_to_hub": ["publish"],
}


@pytest.mark.slow
@pytest.mark.parametrize(("script", "command"), SCRIPTS.items())
def test_a_script_is_its_command(script: str, command: list[str]) -> None:
    for arguments in (["--help"], ["--sede", "1"]):
        done = subprocess.run(
            [sys.executable, f"{script}.py", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == tinybert(*command, *arguments)


@pytest.mark.parametrize(("script", "command"), SCRIPTS.items())
def test_the_commands_of_its_docstring_are_right(script: str, command: list[str]) -> None:
    manual = import_module(script).__doc__
    assert manual is not None
    lines = re.findall(rf"^    (?:python|accelerate launch).* {script}\.py(.*)$", manual, flags=re.MULTILINE)
    assert len(lines) == 5 + (script == "train_retrieval")
    for line in lines:
        words = [*command, *shlex.split(line, comments=True)]
        app.parse_args(words, exit_on_error=False, print_error=False)  # raises where it is none
