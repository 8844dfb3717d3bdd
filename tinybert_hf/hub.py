"""The Hugging Face Hub is not waited for without end."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import huggingface_hub.utils

# The client that huggingface_hub uses: its releases take one of two, and only later ones say which.
httpx: Any = getattr(huggingface_hub.utils, "httpx", None) or import_module("httpx")

# After which a request has failed. huggingface_hub waits for ever, and asks six times: within two minutes that is told.
SECONDS_OF_SILENCE = 8


@contextmanager
def limited_silence() -> Iterator[None]:
    """Give each request to the Hub its limit: some calls of huggingface_hub switch that of the session off."""
    hooks = huggingface_hub.get_session().event_hooks["request"]  # there is one session for the whole process
    hooks.append(set_limit)
    try:
        yield
    finally:
        hooks.remove(set_limit)


def set_limit(request: Any) -> None:
    request.extensions["timeout"] = httpx.Timeout(SECONDS_OF_SILENCE).as_dict()
