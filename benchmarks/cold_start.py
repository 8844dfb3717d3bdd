"""From the start of a process to the printed answer of a search, beside the least that any such command must do.

    python -m benchmarks.cold_start --size full

- ours: `tinybert search` with one query and a few chunks;
- ours without torch: `examples/search_without_torch.py` with the same, by the model's int8 or fp32 ONNX file;
- the floor: a process that imports torch and transformers and reads the same weights, and answers nothing;
- the floor of transformers: the same, but it loads the weights as a `BertModel` of transformers, and the tokenizer, as a
  process must that uses any model of that library;
- sentence-transformers: a process that loads the same folder, encodes the same texts and prints the best one;
- fastembed, where `make interop` has installed it: the same, by the int8 file.

Memory is the most that was resident at a time, and CPU time that of all threads, both as the kernel counts them.
The files were read before, so all come from the page cache. Runs alternate; the first of each is not counted.
"""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from benchmarks.encoding import publish
from benchmarks.measure import (
    BenchmarkArguments,
    alternate,
    make_model,
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
FASTEMBED = """
import json, sys
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
TextEmbedding.add_custom_model(
    model="ours", pooling=PoolingType.MEAN, normalization=True, sources=ModelSource(hf="ours"),
    dim=json.load(open(sys.argv[1] + "/config.json"))["hidden_size"], model_file="onnx/model_quantized.onnx",
)
model = TextEmbedding("ours", specific_model_path=sys.argv[1])
chunks = open(sys.argv[3]).read().splitlines()
query, *rows = model.embed([sys.argv[2], *chunks])
print(chunks[max(range(len(rows)), key=lambda i: rows[i] @ query)])
"""
# Between this process and the one that is measured: the kernel gives a new process the memory of the one that started it.
LAUNCHER = """
import os, resource, sys, time
started = time.perf_counter()
status = os.spawnv(os.P_WAIT, sys.argv[1], sys.argv[1:])
seconds, usage = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
print(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, file=sys.stderr)
sys.exit(status)
"""
WITHOUT_TORCH = Path(__file__).parents[1] / "examples" / "search_without_torch.py"
INTEROP = Path(__file__).parents[1] / ".interop" / "bin" / "python"


class Taken(NamedTuple):
    """What a process took."""

    seconds: float
    cpu_seconds: float
    mebibytes: float


@dataclass
class ColdStartBenchmark(BenchmarkArguments):
    """Process start to answer."""

    repeats: int = field(default=7, metadata={"help": "Runs of each side that count, in alternation."})


def run_command(command: list[str], threads: int) -> Taken:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    launch = [sys.executable, "-c", LAUNCHER, *command]
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout.strip():
        raise RuntimeError(f"{command[:4]} gave no answer ({done.returncode}):\n{done.stderr}")
    return Taken(*map(float, done.stderr.splitlines()[-1].split()))


def measure_cold_start(arguments: ColdStartBenchmark, scratch: Path) -> tuple[list[str], dict[str, Any]]:
    """The table, and the numbers behind it."""
    folder = str(run_alone(make_model, arguments.size, scratch / "model", threads=arguments.threads))
    published = run_alone(publish, folder, scratch / "published", threads=arguments.threads)
    chunks = scratch / "chunks.txt"
    chunks.write_text("\n".join(CHUNKS), encoding="utf-8")
    python = [sys.executable, "-c"]
    search = ["--query", QUERY, "--chunks", str(chunks)]
    light = [sys.executable, str(WITHOUT_TORCH), published, *search]
    texts = [published, QUERY, str(chunks)]
    commands = {
        "ours: tinybert search": [sys.executable, "-m", "tinybert_hf", "search", "--model", published, *search],
        "ours without torch, int8": light,
        "ours without torch, fp32": [*light, "--file", "onnx/model.onnx"],
        "import torch, transformers; read the weights": [*python, FLOOR, published],
        "import torch, transformers; load them as a BertModel": [*python, LOAD, f"{published}/bert"],
        "sentence-transformers: load, encode, print": [*python, THEIRS, *texts],
    }
    if INTEROP.exists():
        commands["fastembed, int8: load, encode, print"] = [str(INTEROP), "-c", FASTEMBED, *texts]
    sides = {name: partial(run_command, command, arguments.threads) for name, command in commands.items()}
    results = {name: runs[1:] for name, runs in alternate(sides, arguments.repeats + 1).items()}
    digits = 2, 2, 0  # after the point, of seconds, CPU seconds and MiB
    rows = [[name, *map(spread, zip(*runs, strict=True), digits)] for name, runs in results.items()]
    return [table(["", "seconds", "CPU seconds", "MiB"], rows)], results


def main() -> None:
    arguments = parse_arguments(ColdStartBenchmark, __doc__)
    with TemporaryDirectory() as scratch:
        report(arguments, *measure_cold_start(arguments, Path(scratch)))


if __name__ == "__main__":
    main()
