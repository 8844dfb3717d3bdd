"""From the start of a process to the printed answer of a search, beside the least that any such command must do.

    python -m benchmarks.cold_start --size full

- ours: `tinybert search` with one query and a few chunks;
- the floor: a process that imports torch and transformers and reads the same weights, and answers nothing;
- the floor of transformers: the same, but it loads the weights as a `BertModel` of transformers, and the tokenizer, as a
  process must that uses any model of that library;
- sentence-transformers: a process that loads the same folder, encodes the same texts and prints the best one.

The files were read before, so all come from the page cache. Runs alternate; the first of each is not counted.
"""

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measure import (
    BenchmarkArguments,
    alternate,
    make_model,
    median,
    parse_arguments,
    report,
    run_alone,
    spread,
    table,
)

QUERY = "what makes my program slow"
CHUNKS = [
    "Shotwell organizes and edits digital pictures.",
    "Valgrind finds memory errors and measures where a program spends its time.",
    "BitlBee is an IRC server which forwards everything you say to people on other networks.",
]
FLOOR = """
import sys, torch, transformers
from safetensors.torch import load_file
print(len(load_file(sys.argv[1] + "/model.safetensors")))
"""
LOAD = """
import sys, torch
from transformers import AutoModel, AutoTokenizer
AutoTokenizer.from_pretrained(sys.argv[1])
print(AutoModel.from_pretrained(sys.argv[1]).num_parameters())
"""
THEIRS = """
import sys
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], trust_remote_code=True)
chunks = open(sys.argv[3]).read().splitlines()
print(chunks[model.similarity(model.encode([sys.argv[2]]), model.encode(chunks))[0].argmax()])
"""


@dataclass
class ColdStartBenchmark(BenchmarkArguments):
    """Process start to answer."""

    repeats: int = field(default=7, metadata={"help": "Runs of each side that count, in alternation."})


def seconds_of(command: list[str], threads: int) -> float:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode or not done.stdout.strip():
        raise RuntimeError(f"{command[:4]} gave no answer (status {done.returncode}):\n{done.stderr}")
    return seconds


def measure_cold_start(arguments: ColdStartBenchmark, scratch: Path) -> tuple[list[str], dict[str, Any]]:
    """The table, and the numbers behind it."""
    folder = str(run_alone(make_model, arguments.size, scratch / "model", threads=arguments.threads))
    chunks = scratch / "chunks.txt"
    chunks.write_text("\n".join(CHUNKS), encoding="utf-8")
    python = [sys.executable, "-c"]
    search = ["--model", folder, "--query", QUERY, "--chunks", str(chunks)]
    commands = {
        "ours: tinybert search": [sys.executable, "-m", "tinybert_hf", "search", *search],
        "import torch, transformers; read the weights": [*python, FLOOR, folder],
        "import torch, transformers; load them as a BertModel": [*python, LOAD, f"{folder}/bert"],
        "sentence-transformers: load, encode, print": [*python, THEIRS, folder, QUERY, str(chunks)],
    }
    sides = {name: partial(seconds_of, command, arguments.threads) for name, command in commands.items()}
    results = {name: runs[1:] for name, runs in alternate(sides, arguments.repeats + 1).items()}
    floor = median(results["import torch, transformers; read the weights"])
    rows = [[name, spread(runs, 2), f"{median(runs) / floor:.2f}"] for name, runs in results.items()]
    return [table(["", "seconds", "times the floor"], rows)], results


def main() -> None:
    arguments = parse_arguments(ColdStartBenchmark, __doc__)
    with TemporaryDirectory() as scratch:
        report(arguments, *measure_cold_start(arguments, Path(scratch)))


if __name__ == "__main__":
    main()
