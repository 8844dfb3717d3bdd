"""Set up the process for training, run a stage, and leave the process as it was."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType, ProjectConfiguration
from transformers.utils import logging as transformers_logging

from ..data import without_progress_bars
from ..encoding import fast_dtype
from ..errors import InputError, MissingExtraError
from .arguments import TrainingArguments
from .checkpoints import find_checkpoint, single_writer
from .launch import keep_freed_memory, precision_was_chosen, start_processes, use_all_cores
from .stage import Stage
from .trainer import Trainer


class TrainingResult(NamedTuple):
    """What a training run leaves."""

    summary: dict[str, Any]  # data, settings, versions, hardware, time and every measurement
    folder: Path  # the model


def run_stage(arguments: TrainingArguments, build: Callable[[Any, Accelerator, Path | None], Stage]) -> TrainingResult:
    """Set up, go on from a checkpoint where asked, and train."""
    start_processes()
    output_dir = Path(arguments.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    with prepared_process(arguments) as accelerator, single_writer(accelerator, output_dir):
        checkpoint = find_checkpoint(arguments)
        stage = build(arguments, accelerator, checkpoint)
        trainer = Trainer(arguments, accelerator, stage)
        if checkpoint:
            trainer.resume(checkpoint)
        return TrainingResult(trainer.train(), output_dir)


@contextmanager
def prepared_process(arguments: TrainingArguments) -> Iterator[Accelerator]:
    """An accelerator, in a process that is set up for training. Set back afterwards:

    - accelerate's state, so that a second training in a notebook starts afresh;
    - the levels of the loggers of accelerate, bm25s and httpx or httpx2, which write a line for each file, index and request;
    - the progress bars of transformers, which would cut the training bar in two, and of datasets without a terminal.

    What stays changed, on a CPU: the number of torch's threads, and that glibc keeps freed memory.
    """
    ours, *others = [logging.getLogger(name) for name in ("tinybert_hf", "accelerate", "bm25s", "httpx", "httpx2")]
    with ExitStack() as afterwards:
        for one in (ours, *others):
            afterwards.callback(one.setLevel, one.level)
        if transformers_logging.is_progress_bar_enabled():
            afterwards.callback(transformers_logging.enable_progress_bar)
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:  # several processes keep their connections
            afterwards.callback(AcceleratorState._reset_state, reset_partial_state=True)
            afterwards.callback(GradientState._reset_state)
        accelerator = build_accelerator(arguments)
        for one in others if accelerator.is_main_process else [ours, *others]:
            one.setLevel(logging.WARNING)
        transformers_logging.disable_progress_bar()
        if not accelerator.is_main_process or not sys.stderr.isatty():
            afterwards.enter_context(without_progress_bars())
        yield accelerator


def build_accelerator(arguments: TrainingArguments) -> Accelerator:
    """Devices, processes, mixed precision, accumulation and tracker.

    Raises: InputError: if the tracker is unknown to accelerate or not installed, or the launcher shards the model.
    """
    on_cpu = not torch.accelerator.is_available()
    tracker = None if arguments.report_to == "none" else arguments.report_to
    try:
        accelerator = Accelerator(
            mixed_precision=choose_precision(),
            cpu=on_cpu,  # accelerate takes several processes without an accelerator for single ones otherwise
            gradient_accumulation_steps=arguments.gradient_accumulation_steps,
            log_with=tracker,
            project_config=ProjectConfiguration(logging_dir=str(Path(arguments.output_dir, "runs"))),
        )
    except ValueError as error:
        raise InputError(f"accelerate does not take these settings: {error}") from error
    if on_cpu:
        use_all_cores(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        keep_freed_memory()
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise InputError(
            f"This training keeps a whole model on every device, and accelerate was configured for "
            f"{accelerator.distributed_type.value}. Launch it with --multi_gpu, or run `accelerate config` again."
        )
    if tracker and not accelerator.log_with:
        remedy = f"pip install {tracker}, or pass --report_to none."
        raise MissingExtraError(f"The tracker {tracker} is not installed; {remedy}")
    return accelerator


def choose_precision() -> str:
    """What the user asked for; otherwise bf16 where the hardware multiplies it, and fp32 elsewhere."""
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION")
    if asked and (asked != "no" or precision_was_chosen()):
        return asked
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    return "bf16" if fast_dtype(device) == torch.bfloat16 else "no"
