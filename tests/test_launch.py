"""What is read of the processes above this one, and what this one does with its memory."""

import platform
from pathlib import Path

import psutil
import pytest
from fresh_process import run_python

from tinybert_hf.launch import find_launcher, precision_was_chosen


def test_an_ancestor_that_may_not_be_read_is_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(process: psutil.Process) -> list[str]:
        raise psutil.AccessDenied(process.pid)  # what macOS answers for another user's process

    monkeypatch.setattr(psutil.Process, "cmdline", refuse)
    assert psutil.Process().parents(), "this test would be vacuous: there is no ancestor"
    assert find_launcher.__wrapped__() is None


@pytest.mark.parametrize(
    ("command", "chosen"),
    [
        ([], True),  # no launcher: the variable is the user's own
        (["launch", "train.py"], False),
        (["launch", "--mixed_precision", "no", "train.py"], True),
        (["launch", "--config_file", __file__, "train.py"], True),
        (["launch", "--config_file", "/no/such/file", "train.py"], False),
    ],
)
def test_whose_word_no_mixed_precision_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: list[str], chosen: bool
) -> None:
    class Launcher:
        def cmdline(self) -> list[str]:
            return ["python", "accelerate", *command]

    monkeypatch.setattr("tinybert_hf.launch.find_launcher", lambda: Launcher() if command else None)
    monkeypatch.setattr("tinybert_hf.launch.default_config_file", str(tmp_path / "none.yaml"))
    assert precision_was_chosen() is chosen


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="another C library's allocator has no such settings"
)
def test_freed_memory_is_there_for_the_next_step(tmp_path: Path) -> None:
    printed = run_python(
        """
        import os
        from resource import RUSAGE_SELF, getrusage

        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # with an accelerator nothing is set

        import torch

        from tinybert_hf.arguments import TrainingArguments
        from tinybert_hf.training import build_accelerator

        def new_pages():
            before = getrusage(RUSAGE_SELF).ru_minflt
            [torch.ones(5_000_000) for _ in range(10)]  # 200 MB
            return getrusage(RUSAGE_SELF).ru_minflt - before

        build_accelerator(TrainingArguments(report_to="none", output_dir="run"))
        print(*(new_pages() for _ in range(5)))  # where tensors lie may shift in the second and third
        """,
        tmp_path,
        without_package=False,
    )
    first, *_, last = map(int, printed.split())
    assert last < first / 10
