"""What `tinybert serve` and `tinybert mcp` do with their flags, and how a server ends; answers are in tests/serving.

python -m pytest tests/cli/test_serve_command.py -q
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from command_line import tinybert
from fresh_process import NO_NETWORK
from serving_setup import build_index
from transformers import PreTrainedTokenizerBase


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org"])
def test_other_machines_need_a_key(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINYBERT_API_KEY", raising=False)
    done = tinybert("serve", "no.index", "--host", host)
    assert done.status == 1 and f"--host {host} lets other machines in: pass --api_key" in done.err
    for way in ("flag", "variable"):
        monkeypatch.setenv("TINYBERT_API_KEY", "secret" if way == "variable" else "")
        done = tinybert("serve", "no.index", "--host", host, *(["--api_key", "secret"] if way == "flag" else []))
        assert "There is no index at no.index" in done.err


@pytest.mark.parametrize("command", ["serve", "mcp"])
def test_an_index_that_is_not_there_is_named(command: str) -> None:
    done = tinybert(command, "no.index")
    assert done.status == 1 and "There is no index at no.index" in done.err
    assert not Path("no.index").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [("serve", "prometheus_client", "serve"), ("serve", "fastapi", "serve"), ("mcp", "mcp", "mcp")],
)
def test_a_missing_library_is_named_with_its_extra(command: str, module: str, extra: str) -> None:
    code = f"import sys; sys.modules[{module!r}] = None\nfrom tinybert_hf.cli import main\nmain([{command!r}, 'i'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and f"pip install 'tinybert_hf[{extra}]'" in done.stderr
    assert module in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_once_running_requests_are_answered(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, number: signal.Signals
) -> None:
    """With the key of the environment, and a model that has moved."""
    index = build_index(tmp_path, tokenizer)
    moved = (tmp_path / "model").rename(tmp_path / "moved")
    command = [sys.executable, "-m", "tinybert_hf", "serve", str(index), "--port", "0", "--model", str(moved)]
    env = os.environ | NO_NETWORK | {"TINYBERT_API_KEY": "secret"}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        log = ""
        while not (found := re.search(r"running on (http://127\.0\.0\.1:\d+)", log)):
            line = process.stderr.readline()
            assert line, log
            log += line
        client = httpx.Client(
            base_url=found[1], headers={"Authorization": "Bearer secret"}, trust_env=False, timeout=120
        )
        answers: list[httpx.Response] = []
        body = {"model": "m", "input": ["a fast compiler for small machines " * 30] * 2_048}
        asking = threading.Thread(target=lambda: answers.append(client.post("/v1/embeddings", json=body)))
        asking.start()
        while asking.is_alive() and "tinybert_batch_texts_count 0.0" in client.get("/metrics").text:
            time.sleep(0.01)
        running = asking.is_alive()
        process.send_signal(number)
        asking.join()
        process.wait(60)
        rest = process.stderr.read()
    (answer,) = answers
    assert running, "this test would be vacuous: all was answered before the signal"
    assert answer.status_code == 200 and len(answer.json()["data"]) == 2_048
    assert process.returncode in (0, -number) and "Traceback" not in rest
    with pytest.raises(httpx.ConnectError):
        client.get("/healthz")
