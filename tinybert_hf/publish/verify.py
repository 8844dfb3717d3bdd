"""Whether a pushed model is the local one: it is loaded from the Hub again, as a stranger would."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import gettempdir

from ..errors import UnreadableError
from ..files import scratch_folder


class HubError(UnreadableError):
    """The model is not on the Hub, or not as it should be; the message says why and what to do."""


def load_back(folder: Path, repo_id: str, revision: str, endpoint: str) -> None:
    """Load the model from the Hub, past all caches, and compare its output, and that of its ONNX models, with the folder's.

    Raises: HubError: if an output differs by more than 1e-6.
    """
    with scratch_folder(Path(gettempdir()), "tinybert-publish-") as scratch:
        env = os.environ | {"HF_HUB_CACHE": f"{scratch}/hub", "HF_MODULES_CACHE": f"{scratch}/modules"}
        env |= {"HF_ENDPOINT": endpoint, "PYTHONSAFEPATH": "1"}  # else Python imports from the script's folder
        command = [sys.executable, str(Path(__file__).with_name("stranger.py"))]
        command += [repo_id, revision, str(folder.resolve())]
        done = subprocess.run(command, env=env, cwd=scratch, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise HubError(
            f"The files are on the Hub, but {repo_id} at {revision} does not load as the local model: {reason}. Run the "
            "same command again; if it stays so, do not use the copy on the Hub."
        )
