"""Which rows make up which batch.

Batches are seeded, the same for any number of processes, and resumable at any step.
"""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class StepSampler(Sampler[list[int]]):
    """Row numbers of each micro-batch of one process, from `start_step` on.

    Every epoch is a seeded permutation of the rows, cut into optimizer steps of `num_processes` x
    `gradient_accumulation_steps` x `batch_size` rows; what is left over waits for the next epoch. Process r of W takes
    the r-th slice of each joint micro-batch, so W processes see together what one process would see with a batch W
    times as large. Nothing is remembered between steps: step s is a function of the seed and s.

    Raises: ValueError: if the data set has fewer rows than one step takes.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        gradient_accumulation_steps: int = 1,
        seed: int = 0,
        process_index: int = 0,
        num_processes: int = 1,
    ) -> None:
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.accumulation = gradient_accumulation_steps
        self.seed = seed
        self.process_index = process_index
        self.num_processes = num_processes
        self.rows_per_step = batch_size * gradient_accumulation_steps * num_processes
        self.steps_per_epoch = num_rows // self.rows_per_step
        self.start_step = 0
        self.max_steps = self.steps_per_epoch
        if not self.steps_per_epoch:
            raise ValueError(
                f"The training data has {num_rows} rows, one optimizer step takes {self.rows_per_step} "
                f"({batch_size} x {gradient_accumulation_steps} accumulated x {num_processes} processes). "
                "Lower --per_device_train_batch_size."
            )

    def __len__(self) -> int:
        return (self.max_steps - self.start_step) * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        epoch, order = -1, torch.empty(0, dtype=torch.long)
        for step in range(self.start_step, self.max_steps):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                generator = torch.Generator().manual_seed(self.seed + epoch)
                order = torch.randperm(self.num_rows, generator=generator)
            first = (step % self.steps_per_epoch) * self.rows_per_step
            micro_batches = order[first : first + self.rows_per_step].view(
                self.accumulation, self.num_processes, self.batch_size
            )
            yield from micro_batches[:, self.process_index].tolist()
