"""Run a command: in this process, or in one of its own."""

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from fresh_process import NO_NETWORK

from tinybert_hf.cli import main


class Done(NamedTuple):
    """How a command ended, and what it wrote."""

    status: int
    out: str
    err: str


def tinybert(*arguments: str | Path, stdin: str = "") -> Done:
    """`tinybert ARGUMENTS` in this process."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err), patch("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()))):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            assert isinstance(end.code, int)
            status = end.code
    return Done(status, out.getvalue(), err.getvalue())


def tinybert_process(*arguments: str | Path, home: Path, stdin: str = "") -> Done:
    """`python -m tinybert_hf ARGUMENTS`, without a network and with `home` for the Hugging Face caches."""
    done = subprocess.run(
        [sys.executable, "-m", "tinybert_hf", *map(str, arguments)],
        input=stdin,
        env=os.environ | NO_NETWORK | {"HF_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)
