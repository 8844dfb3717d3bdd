"""What a run tells its user: the plan before the first step, the result after the last one."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator


def plan(unit: str, facts: Mapping[str, Any], max_steps: int, rows_per_step: int, epochs: float) -> str:
    """What will be done, in one line."""
    return (
        f"Training on {facts['train_rows']:,} {unit}: {max_steps:,} steps of {rows_per_step:,} {unit}, "
        f"{epochs:.3g} pass{'' if epochs == 1 else 'es'} over them. Measured on {facts['eval_rows']:,} other {unit}."
    )


def next_commands(stage: str, folder: Path) -> str:
    publish = f"Publish it:           tinybert publish --model {folder} --repo_id OWNER/NAME"
    if stage == "sentiment":
        return f"Train search with it: tinybert train retrieval --model {folder} --data pairs.csv\n{publish}"
    return (
        f'Try it:               tinybert search --model {folder} --query "a question" --chunks passages.txt\n{publish}\n'
        f"Index texts:          tinybert index build --index my.index --model {folder} --data passages.jsonl"
    )


def describe_machine(accelerator: Accelerator) -> dict[str, dict[str, Any]]:
    """The hardware, and the versions of what decides a run's result."""
    device = accelerator.device
    hardware = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": platform.processor() or platform.machine(),
        "num_processes": accelerator.num_processes,
        "threads_per_process": torch.get_num_threads(),
        "mixed_precision": accelerator.mixed_precision,
    }
    versions = {name: version(name) for name in ("torch", "transformers", "tokenizers", "datasets", "accelerate")}
    return {"hardware": hardware, "versions": {"python": platform.python_version(), **versions}}
