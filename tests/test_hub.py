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
from tinybert_hf.beir import load_beir
from tinybert_hf.data import load_data
from tinybert_hf.encoding import load_search_pipeline
from tinybert_hf.evaluation import load_text_encoder

huggingface_hub.utils._http.time.sleep = lambda seconds: None  # it would wait before it asks again
tinybert_hf.hub.SECONDS_OF_SILENCE = 0.2
for ask in (load_search_pipeline, load_text_encoder, load_data, load_beir):
    try:
        ask("OWNER/NAME")
    except ValueError as error:
        print(type(error).__name__, " ".join(str(error).split()))
"""


@pytest.mark.slow
def test_a_silent_hub_is_not_waited_for_without_end(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        env = os.environ | {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
        done = subprocess.run([sys.executable, "-c", ASK], env=env, capture_output=True, text=True, timeout=300)
    told = done.stdout.splitlines()
    assert [line.partition(" OWNER/NAME ")[0] for line in told] == [
        "UnreadableError Could not load the model",
        "UnreadableError Could not load the model",
        "InputError Could not read the data set",
        "InputError Could not read the data set",
    ], done.stderr
