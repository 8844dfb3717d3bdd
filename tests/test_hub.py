"""A Hub that takes a request and never answers is told of."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ASK = """
import huggingface_hub.utils._http
import tinybert_hf.hub
huggingface_hub.utils._http.time.sleep = lambda seconds: None  # it would wait before it asks again
tinybert_hf.hub.SECONDS_OF_SILENCE = 0.2
from {module} import {function}
try:
    {function}("OWNER/NAME")
except ValueError as error:
    print(type(error).__name__, " ".join(str(error).split()))
"""


@pytest.mark.parametrize(
    ("module", "function", "message"),
    [
        (
            "tinybert_hf.encoding",
            "load_search_pipeline",
            "UnreadableError Could not load the model OWNER/NAME (no such",
        ),
        ("tinybert_hf.evaluation", "load_text_encoder", "UnreadableError Could not load the model OWNER/NAME (no such"),
        ("tinybert_hf.data", "load_data", "InputError Could not read the data set OWNER/NAME (split=train)"),
        ("tinybert_hf.beir", "load_beir", "InputError Could not read the data set OWNER/NAME"),
    ],
)
def test_a_silent_hub_is_not_waited_for_without_end(module: str, function: str, message: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        env = os.environ | {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
        code = ASK.format(module=module, function=function)
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith(message), done.stdout + done.stderr
