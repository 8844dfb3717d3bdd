"""What is read of the processes above this one, when a run leaves, and what it does with its memory."""

import platform
import signal
import threading
from argparse import Namespace
from pathlib import Path

import psutil
import pytest
from accelerate import Accelerator
from fresh_process import run_python

from tinybert_hf.errors import InputError
from tinybert_hf.training import launch as module
from tinybert_hf.training.launch import StopSignal, find_launcher, launch_options, precision_was_chosen, start_processes


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
        (["launch", "--mixed-precision=no", "train.py"], True),
        (["launch", "train.py", "recipe.yaml", "--mixed_precision", "no"], False),  # a flag of the script
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

    monkeypatch.setattr(module, "find_launcher", lambda: Launcher() if command else None)
    monkeypatch.setattr(module, "launch_options", launch_options.__wrapped__)  # what was found is kept otherwise
    monkeypatch.setattr("tinybert_hf.training.launch.default_config_file", str(tmp_path / "none.yaml"))
    assert precision_was_chosen() is chosen


def test_a_number_of_processes_from_a_file_is_asked_for_as_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "launch_options", lambda: Namespace(num_processes=None))
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(InputError, match="Pass the number of processes as accelerate launch --num_processes N"):
        start_processes()


# ---- Leaving ----


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_remembered_and_the_handlers_are_as_before(accelerator: Accelerator, number: int) -> None:
    heard: list[int] = []
    before = signal.signal(number, lambda number, frame: heard.append(number))
    try:
        with StopSignal() as stop:
            assert not stop.received(accelerator)
            signal.raise_signal(number)
            assert stop.number == number and stop.received(accelerator)
        assert not heard
        signal.raise_signal(number)
        assert heard == [number]
        with pytest.raises(ZeroDivisionError), StopSignal():
            raise ZeroDivisionError
        signal.raise_signal(number)
        assert heard == [number] * 2, "after an error too"
    finally:
        signal.signal(number, before)


def test_the_second_ctrl_c_does_not_wait() -> None:
    with StopSignal():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert stop.number == signal.SIGTERM


def test_outside_of_the_main_thread_no_handler_is_changed(accelerator: Accelerator) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def train() -> None:
        with StopSignal() as stop:
            seen.append((signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)))
            seen.append(stop.received(accelerator))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert seen == [before, False]


def test_the_death_of_the_launcher_is_a_signal(accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch) -> None:
    class Launcher:
        alive = True

        def is_running(self) -> bool:
            return self.alive

    launcher = Launcher()
    monkeypatch.setattr(module, "find_launcher", lambda: launcher)
    with StopSignal() as stop:
        assert not stop.received(accelerator)
        launcher.alive = False
        assert stop.received(accelerator)
        assert stop.number == signal.SIGTERM


# ---- Memory ----


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library's allocator has no such settings")
def test_freed_memory_is_there_for_the_next_step(tmp_path: Path) -> None:
    printed = run_python(
        """
        import os
        from resource import RUSAGE_SELF, getrusage

        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # with an accelerator nothing is set

        import torch

        from tinybert_hf.training.arguments import TrainingArguments
        from tinybert_hf.training.setup import build_accelerator

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
