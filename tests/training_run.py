"""Start a command in a process that has its imports behind it, so that killing it ten times is cheap."""

import multiprocessing
import os
import random
import socket
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

from tinybert_hf.cli import main

ROOT = Path(__file__).parent.parent
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    [
        *("tinybert_hf.training.retrieval", "tinybert_hf.training.sentiment", "tinybert_hf.index"),
        *("tinybert_hf.publish.push", "tinybert_hf.cli", "ir_measures", "bm25s"),
    ]
)

# A model that trains in moments, as --config_overrides.
TINY = (
    "vocab_size=300,hidden_size=32,num_hidden_layers=1,residual_initializer_range=0.1,"
    "num_attention_heads=4,intermediate_size=64,max_position_embeddings=32"
)
NO_DROPOUT = "hidden_dropout_prob=0,attention_probs_dropout_prob=0"

WORDS = [
    "fast",
    "small",
    "music",
    "photo",
    "mail",
    "text",
    "editor",
    "game",
    "server",
    "library",
    "parse",
    "archive",
    "network",
    "python",
    "data",
    "image",
]


def write_pairs(path: Path, rows: int, seed: int) -> Path:
    """Pairs whose answer shares two of its words with the query, as csv."""
    rng = random.Random(seed)
    lines = ["query,answer"]
    for _ in range(rows):
        words = rng.sample(WORDS, 6)
        lines.append(f"{words[0]} {words[1]},a {words[1]} {words[2]} {words[0]} for {' '.join(words[3:])}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def run_command(argv: list[str], log: Path, environment: dict[str, str]) -> None:
    """In the child: what `tinybert ...` does."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    sys.argv = ["tinybert", *argv]
    main(argv)


def environments(num_processes: int) -> list[dict[str, str]]:
    """What a launcher tells each of its processes; nothing where there is one."""
    if num_processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    ranks = [str(rank) for rank in range(num_processes)]
    size = {"WORLD_SIZE": str(num_processes), "LOCAL_WORLD_SIZE": str(num_processes)}
    return [address | size | {"RANK": rank, "LOCAL_RANK": rank} for rank in ranks]


def start(stage: str, arguments: list[str], log: Path, num_processes: int = 1) -> list[BaseProcess]:
    """Start `tinybert train STAGE ...` as one process, or as several that know each other as torchrun's do."""
    processes = [
        context.Process(target=run_command, args=(["train", stage, *arguments], log, environment))
        for environment in environments(num_processes)
    ]
    for process in processes:
        process.start()
    return processes


def finish(processes: list[BaseProcess], log: Path) -> None:
    """Wait for the processes to end well; their output is shown where they do not."""
    for process in processes:
        process.join(timeout=240)
    codes = [process.exitcode for process in processes]
    assert codes == [0] * len(codes), f"{codes}\n{log.read_text()}"


def train(stage: str, arguments: list[str], log: Path, num_processes: int = 1) -> None:
    """Run `tinybert train STAGE ...` to its end."""
    finish(start(stage, arguments, log, num_processes), log)
