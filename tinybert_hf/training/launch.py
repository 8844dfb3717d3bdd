"""What `accelerate launch` leaves undone on a machine without an accelerator.

There (accelerate 1.15) it starts one process whatever `--num_processes` says, gives it one thread unless `--cpu` is
passed, does not hand on the SIGTERM it receives, and does not set how memory is allocated.
"""

import ctypes
import os
import platform
import signal
import sys
import threading
from argparse import Namespace
from contextlib import suppress
from functools import cache
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import default_config_file
from accelerate.commands.launch import launch_command_parser

from ..errors import InputError


@cache
def find_launcher() -> psutil.Process | None:
    """The `accelerate launch` among this process's ancestors."""
    for process in psutil.Process().parents():
        with suppress(psutil.Error):  # another user's process, or one that has just ended: not our launcher
            command = process.cmdline()
            if "launch" in command and any("accelerate" in os.path.basename(part) for part in command[:2]):
                return process
    return None


@cache
def launch_options() -> Namespace | None:
    """What the user passed to the `accelerate launch` that started this process, if one did."""
    command = launcher.cmdline() if (launcher := find_launcher()) else None
    return launch_command_parser().parse_args(command[command.index("launch") + 1 :]) if command else None


def precision_was_chosen() -> bool:
    """Whether ACCELERATE_MIXED_PRECISION=no is the user's word: `accelerate launch` sets it unasked too."""
    options = launch_options()
    return not options or bool(options.mixed_precision) or os.path.isfile(options.config_file or default_config_file)


def start_processes() -> None:
    """Become `torchrun` with the number of processes that `accelerate launch` was asked for but did not start."""
    # accelerate sets MASTER_PORT where it was asked for several processes; one that torchrun started has a rank.
    options = launch_options()
    if options is None or "MASTER_PORT" not in os.environ or "LOCAL_RANK" in os.environ:
        return
    if options.num_processes is None:
        raise InputError("Pass the number of processes as accelerate launch --num_processes N.")
    if options.num_processes > 1:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        os.execv(sys.executable, [*torchrun, f"--nproc_per_node={options.num_processes}", *sys.argv])


def use_all_cores(num_local_processes: int) -> None:
    """Share the processor's cores among the processes of this machine, unless the user set a number of threads."""
    launcher, options = find_launcher(), launch_options()
    environment = launcher.environ() if launcher else os.environ
    if not (environment.get("OMP_NUM_THREADS") or (options and options.num_cpu_threads_per_process)):
        cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count()
        torch.set_num_threads(max(1, (cores or 1) // num_local_processes))


def keep_freed_memory() -> None:
    """Have glibc keep the memory that a step frees: asking for it again took a tenth to a quarter of the next step."""
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, -1)  # no trimming
        libc.mallopt(mmap_max, 0)  # memory mapped for one tensor would go back with it


class StopSignal:
    """A context that remembers that the run was asked to leave: by SIGTERM, Ctrl-C, or the death of its launcher."""

    def __init__(self) -> None:
        self.number = 0
        self.launcher = find_launcher()
        self.handlers: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():  # outside of it, only the launcher is watched
            for number in (signal.SIGTERM, signal.SIGINT):
                self.handlers[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame: Any) -> None:
        if self.number and number == signal.SIGINT:  # the second Ctrl-C does not wait for a checkpoint
            raise KeyboardInterrupt
        self.number = number

    def received(self, accelerator: Accelerator) -> bool:
        """True on every process as soon as one of them was asked."""
        if self.launcher and not self.launcher.is_running():
            self.number = self.number or signal.SIGTERM
        if self.number:
            accelerator.set_trigger()
        return accelerator.check_trigger()
