"""The folder of a training run: which checkpoints it holds, which one to resume from, and who may write to it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from filelock import FileLock, Timeout

from ..errors import InputError, MissingFileError, UnreadableError
from ..files import LOCK, find_damage
from .arguments import TrainingArguments

logger = logging.getLogger(__name__)

STATE_FILE = "training_state.json"
LOCK_SECONDS = 60  # how long a killed launcher's workers may take to notice and leave


def find_checkpoint(arguments: TrainingArguments) -> Path | None:
    """The checkpoint to resume from: for `auto` the newest one that is whole. None starts a new run.

    Raises: InputError: if there is none to resume, none that is whole, or a run that nobody asked to resume.
    """
    output_dir = Path(arguments.output_dir)
    checkpoints = list_checkpoints(output_dir)
    wanted = arguments.resume_from_checkpoint
    if wanted is None:
        if checkpoints or list(output_dir.glob("*_summary.json")):
            remedy = "Pass --resume_from_checkpoint auto to continue it, or another --output_dir to start a new one."
            raise InputError(f"{output_dir} holds a run already. {remedy}")
        return None
    if wanted == "auto":
        if not checkpoints:
            logger.info("No checkpoint in %s yet: starting from the beginning.", output_dir)
            return None
    elif not Path(wanted, STATE_FILE).is_file():
        found = ", ".join(str(path) for path in checkpoints) or "none"
        raise MissingFileError(f"{wanted} is no checkpoint; those in {output_dir}: {found}. Pass one, or auto.")
    else:
        checkpoints = [Path(wanted)]
    damage = ""
    for checkpoint in reversed(checkpoints):
        if (reason := find_damage(checkpoint)) is None:
            return checkpoint
        damage = f"{checkpoint} is not whole: {reason}."
        logger.warning("%s It is left alone.", damage)
    raise UnreadableError(
        f"{damage} Restore it from a copy. Or start a new run in another --output_dir; where its model.safetensors is "
        f"sound, --model {checkpoint} begins with these weights."
    )


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; `find_damage` tells which are whole."""
    steps = {path.name.removeprefix("checkpoint-"): path for path in output_dir.glob("checkpoint-*") if path.is_dir()}
    return [steps[step] for step in sorted(filter(str.isdigit, steps), key=int) if any(steps[step].iterdir())]


@contextmanager
def single_writer(accelerator: Accelerator, output_dir: Path) -> Iterator[None]:
    """Keep a second run out of `output_dir`; the system frees the lock of a killed one."""
    lock = FileLock(output_dir / LOCK)
    if accelerator.is_main_process:
        try:
            lock.acquire(timeout=LOCK_SECONDS)
        except Timeout:
            raise InputError(f"Another run is writing to {output_dir}; wait for it, or stop it.") from None
    accelerator.wait_for_everyone()
    try:
        yield
    finally:
        lock.release()
