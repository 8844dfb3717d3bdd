"""Which rows make up which batch: a function of the seed and the step.

So batches are the same for any number of processes, and a run can go on at any step.
"""

import logging
from dataclasses import dataclass
from functools import lru_cache

import torch
from accelerate import Accelerator

from ..errors import InputError
from .arguments import TrainingArguments

logger = logging.getLogger(__name__)

LARGEST_BATCH, SMALLEST_BATCH = 256, 32  # of `auto`
STEPS_OF_AN_EPOCH, FEWEST_STEPS = 4, 30  # of `auto`


@dataclass
class StepSampler:
    """The rows of each step, for one process.

    Every epoch is a seeded permutation of the rows, cut into optimizer steps of `num_processes` x
    `gradient_accumulation_steps` x `batch_size` rows. What is left over waits for the next epoch. Process r takes the
    r-th slice of each joint micro-batch.

    Raises: InputError: if the data set has fewer rows than one step takes.

    >>> StepSampler(num_rows=5, batch_size=2).micro_batches(step=0)
    [[4, 0]]
    """

    num_rows: int
    batch_size: int
    gradient_accumulation_steps: int = 1
    seed: int = 0
    process_index: int = 0
    num_processes: int = 1

    def __post_init__(self) -> None:
        self.rows_per_step = self.batch_size * self.gradient_accumulation_steps * self.num_processes
        self.steps_per_epoch = self.num_rows // self.rows_per_step
        if not self.steps_per_epoch:
            raise InputError(
                f"The training data has {self.num_rows} rows, one optimizer step takes {self.rows_per_step} ("
                f"{self.batch_size} x {self.gradient_accumulation_steps} accumulated x {self.num_processes} processes). "
                "Lower --per_device_train_batch_size."
            )

    def micro_batches(self, step: int) -> list[list[int]]:
        """Row numbers of this process: `gradient_accumulation_steps` lists of `batch_size`."""
        first = (step % self.steps_per_epoch) * self.rows_per_step
        rows = permutation(self.num_rows, self.seed + step // self.steps_per_epoch)[first : first + self.rows_per_step]
        shares = rows.view(self.gradient_accumulation_steps, self.num_processes, self.batch_size)
        return shares[:, self.process_index].tolist()


@lru_cache(maxsize=1)  # every step of an epoch asks for it
def permutation(num_rows: int, seed: int) -> torch.Tensor:
    return torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))


def build_sampler(arguments: TrainingArguments, accelerator: Accelerator, num_rows: int) -> StepSampler:
    accumulated, num_processes = arguments.gradient_accumulation_steps, accelerator.num_processes
    size = choose_batch_size(arguments.per_device_train_batch_size, num_rows, accumulated * num_processes)
    return StepSampler(num_rows, size, accumulated, arguments.seed, accelerator.process_index, num_processes)


def choose_batch_size(asked: int | str, num_rows: int, batches: int = 1) -> int:
    """Rows of a batch, `batches` of which make a step: as asked or as there are; for `auto`, as the data allows.

    >>> [choose_batch_size("auto", rows) for rows in (20, 90, 270, 900, 16_200)]
    [20, 32, 64, 128, 256]
    """
    most = max(1, num_rows // batches)
    if asked == "auto":
        size = LARGEST_BATCH
        while size > SMALLEST_BATCH and size * STEPS_OF_AN_EPOCH > most:
            size //= 2
        return min(size, most)
    if int(asked) > most:
        logger.warning("A batch has %d rows in place of %s: there are only %d to train on.", most, asked, num_rows)
    return min(int(asked), most)


def choose_epochs(asked: float | str, steps_per_epoch: int) -> float:
    """Passes over the data: as asked; for `auto`, enough for `FEWEST_STEPS` steps.

    >>> choose_epochs("auto", steps_per_epoch=70), choose_epochs("auto", steps_per_epoch=4), choose_epochs(0.5, 70)
    (1, 8, 0.5)
    """
    return -(-FEWEST_STEPS // steps_per_epoch) if asked == "auto" else float(asked)
