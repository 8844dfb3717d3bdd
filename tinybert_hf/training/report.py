"""What a run tells its user: the plan before the first step, the result after the last one."""

import os
import platform
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from accelerate import Accelerator

LEAST_CORES_OF_OTHERS = 0.5


def plan(unit: str, facts: Mapping[str, Any], max_steps: int, rows_per_step: int, epochs: float) -> str:
    """What will be done, in one line.

    >>> plan("pairs", {"train_rows": 18_000, "eval_rows": 1_000}, 140, 256, 2.0)
    'Training on 18,000 pairs: 140 steps of 256 pairs, 2 passes over them. Measured on 1,000 other pairs.'
    """
    return (
        f"Training on {facts['train_rows']:,} {unit}: {max_steps:,} steps of {rows_per_step:,} {unit}, "
        f"{epochs:.3g} pass{'' if epochs == 1 else 'es'} over them. Measured on {facts['eval_rows']:,} other {unit}."
    )


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> duration(40), duration(200), duration(7_400)
    ('40 seconds', '3 minutes', '2 hours 3 minutes')
    """
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    hours, minutes = divmod(round(seconds / 60), 60)
    parts = [(hours, "hour"), (minutes, "minute")]
    return " ".join(f"{number} {name}{'s' * (number != 1)}" for number, name in parts if number)


def result_table(systems: Mapping[str, Mapping[str, float]]) -> str:
    """Measures down, systems across, for a terminal.

    >>> print(result_table({"before": {"nDCG@10": 0.789}, "after": {"nDCG@10": 0.871}, "BM25": {"nDCG@10": 0.767}}))
             before   after    BM25
    nDCG@10   0.789   0.871   0.767
    """
    measures = list(dict.fromkeys(name for values in systems.values() for name in values))
    width = max(map(len, measures))
    lines = [" " * width + "".join(f"{name:>8}" for name in systems)]
    for measure in measures:
        cells = (values.get(measure) for values in systems.values())
        lines.append(f"{measure:{width}}" + "".join(f"{'' if v is None else f'{v:.3f}':>8}" for v in cells))
    return "\n".join(lines)


def next_commands(stage: str, folder: Path) -> str:
    """What to do with the model of a stage."""
    publish = {"Publish it": f"tinybert publish --model {folder} --repo_id OWNER/NAME"}
    if stage == "retrieval":
        commands = {"Try it": f'tinybert search --model {folder} --query "a question" --chunks passages.txt'} | publish
        commands["Index texts"] = f"tinybert index build --index my.index --model {folder} --data passages.jsonl"
    else:
        commands = {"Train search with it": f"tinybert train retrieval --model {folder} --data pairs.csv"} | publish
    width = max(map(len, commands)) + 1
    return "\n".join(f"{f'{purpose}:':{width}} {command}" for purpose, command in commands.items())


class CpuUse(NamedTuple):
    """Seconds that have passed, and seconds of the processor's cores, since some moment."""

    wall: float
    own: float  # by this process
    all: float  # by every process

    @classmethod
    def now(cls) -> "CpuUse":
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        return cls(time.monotonic(), time.process_time(), sum(times) - idle)


def other_programs(start: CpuUse, end: CpuUse, num_local_processes: int = 1) -> str | None:
    """What other programs take of the processor, where it is enough to slow training down.

    Threads wait for each other, so that a core which is taken now and then slows all of them down.

    >>> other_programs(CpuUse(0.0, 0.0, 0.0), CpuUse(wall=10.0, own=12.0, all=25.0))  # doctest: +ELLIPSIS
    'Other programs take about 1.3 of ... cores: training would be faster without them.'
    """
    cores = (end.all - start.all - num_local_processes * (end.own - start.own)) / (end.wall - start.wall)
    if cores < LEAST_CORES_OF_OTHERS:
        return None
    return f"Other programs take about {cores:.1f} of {os.cpu_count()} cores: training would be faster without them."


def describe_hardware(accelerator: Accelerator) -> dict[str, Any]:
    """Device, processes, threads and precision of a run."""
    device = accelerator.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": platform.processor() or platform.machine(),
        "num_processes": accelerator.num_processes,
        "threads_per_process": torch.get_num_threads(),
        "mixed_precision": accelerator.mixed_precision,
    }


def describe_versions() -> dict[str, str]:
    """Versions of what decides a run's result."""
    packages = ("torch", "transformers", "tokenizers", "datasets", "accelerate")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
