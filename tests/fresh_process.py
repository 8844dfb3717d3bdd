"""Run code the way a stranger would: in a new process that cannot import tinybert_hf."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

WITHOUT_THE_PACKAGE = "import sys; sys.modules['tinybert_hf'] = None  # an import of it fails\n"
NO_NETWORK = {
    "HF_HUB_OFFLINE": "1",
    "http_proxy": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
    "no_proxy": "",
}


def run_python(code: str, home: Path, env: dict[str, str] | None = None, without_package: bool = True) -> str:
    """What `code` prints; stderr is shown where it fails.

    Args:
        code: Python source, dedented here.
        home: folder for the Hugging Face caches, so that nothing is found that was not fetched.
        env: the whole environment, `LoopbackHub.env(...)` for one; default: this one's, with networking off.
        without_package: make `import tinybert_hf` fail.
    """
    if env is None:
        env = os.environ | NO_NETWORK | {"HF_HOME": str(home)}
    source = (WITHOUT_THE_PACKAGE if without_package else "") + textwrap.dedent(code)
    return run([sys.executable, "-c", source], env, home)


def run(command: list[str | Path], env: dict[str, str], folder: Path) -> str:
    """What a command prints, run in a folder; stderr is shown where it fails."""
    done = subprocess.run(
        command, env=env, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
