"""Run a function as two processes that torch.distributed connects."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from torch.distributed import TCPStore
from training_run import context


def run_two_processes(worker: Callable[[int, str], None], folder: Path) -> tuple[Any, Any]:
    """Call `worker(rank, folder)` in two processes and load what they save as `{folder}/{rank}.pt`.

    The environment is that of a launcher, so that `init_process_group()` and `Accelerator()` need no more. The
    store listens before they start: a port that was merely free could be taken before rank 0 listens on it.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    arguments = (worker, str(folder), store.port)
    torch.multiprocessing.start_processes(join, arguments, nprocs=2, start_method=context.get_start_method())
    first, second = (torch.load(folder / f"{rank}.pt") for rank in range(2))
    return first, second


def join(rank: int, worker: Callable[[int, str], None], folder: str, port: int) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True")
    worker(rank, folder)
