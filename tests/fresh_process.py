"""Run code the way a stranger would: in a new process that cannot import tinybert_hf."""

import json
import os
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

WITHOUT_THE_PACKAGE = "import sys; sys.modules['tinybert_hf'] = None  # an import of it fails\n"
NO_NETWORK = {
    "HF_HUB_OFFLINE": "1",
    "http_proxy": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
    "no_proxy": "",
}

# Each line that it reads is a job, which a fork of it runs; it answers with the fork's status. What it has imported takes
# most of the ten seconds that transformers takes to import, and reads none of the settings of a job.
FORK_SERVER = """
import json, os, sys
import scipy.optimize, torch._dynamo, torch.distributed.tensor

for line in sys.stdin:
    child = os.fork()
    if not child:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
job = json.loads(line)
os.environ.clear()
os.environ.update(job["env"])
os.chdir(job["folder"])
for descriptor, file in enumerate([os.devnull, job["out"], job["err"]]):
    os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), descriptor)
exec(job["code"], {"__name__": "__main__"})
"""


@cache
def fork_server() -> subprocess.Popen[str]:
    """It ends with the process that started it, which closes its standard input."""
    return subprocess.Popen(
        [sys.executable, "-c", FORK_SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def run_stranger(code: str, home: Path, env: dict[str, str] | None = None, without_package: bool = True) -> str:
    """What `run_python` returns, where it does not matter that torch has been imported already."""
    source, env = prepare(code, home, env, without_package)
    with TemporaryDirectory() as scratch:
        out, err = Path(scratch, "out"), Path(scratch, "err")
        job = {"code": source, "env": env, "folder": str(home), "out": str(out), "err": str(err)}
        server = fork_server()
        assert server.stdin and server.stdout
        print(json.dumps(job), file=server.stdin, flush=True)
        status = server.stdout.readline()
        assert status == "0\n", f"{status}{err.read_text()}"
        return out.read_text()


def run_python(code: str, home: Path, env: dict[str, str] | None = None, without_package: bool = True) -> str:
    """What `code` prints; stderr is shown where it fails.

    Args:
        code: Python source, dedented here.
        home: folder for the Hugging Face caches, so that nothing is found that was not fetched.
        env: the whole environment, `LoopbackHub.env(...)` for one; default: this one's, with networking off.
        without_package: make `import tinybert_hf` fail.
    """
    source, env = prepare(code, home, env, without_package)
    return run([sys.executable, "-c", source], env, home)


def prepare(code: str, home: Path, env: dict[str, str] | None, without_package: bool) -> tuple[str, dict[str, str]]:
    if env is None:
        env = os.environ | NO_NETWORK | {"HF_HOME": str(home)}
    return (WITHOUT_THE_PACKAGE if without_package else "") + textwrap.dedent(code), env


def run(command: list[str | Path], env: dict[str, str], folder: Path) -> str:
    """What a command prints, run in a folder; stderr is shown where it fails."""
    done = subprocess.run(
        command, env=env, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
