"""What is read of the processes above this one."""

import psutil
import pytest

from tinybert_hf.launch import find_launcher


def test_an_ancestor_that_may_not_be_read_is_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(process: psutil.Process) -> list[str]:
        raise psutil.AccessDenied(process.pid)  # what macOS answers for another user's process

    monkeypatch.setattr(psutil.Process, "cmdline", refuse)
    assert psutil.Process().parents(), "this test would be vacuous: there is no ancestor"
    assert find_launcher.__wrapped__() is None
