"""Which rows make up which batch, and which of its texts pass through the encoder together.

Batches are seeded, the same for any number of processes, and resumable at any step.
"""

from collections.abc import Iterator, Sequence

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


def cut_by_length(lengths: Sequence[int], max_tokens: int, group_cost: int) -> list[list[int]]:
    """Texts sorted by length and cut where it takes least: padding against the number of groups, by dynamic programming.

    Args:
        lengths: tokens of each text.
        max_tokens: of a group, padding included; a longer text is a group of its own.
        group_cost: what a further group takes, in tokens.

    Returns: the texts' positions, each in one group, the longest texts first.

    >>> cut_by_length([2, 9, 3, 8], max_tokens=36, group_cost=3)
    [[1, 3], [2, 0]]
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    costs, starts = [0], [0]  # of the first n texts, cut best; where the last of their groups begins
    for end in range(1, len(order) + 1):
        candidates: list[tuple[int, int]] = []  # (cost, where the last group begins)
        for first in reversed(range(end)):
            tokens = (end - first) * lengths[order[first]]
            if tokens > max_tokens and candidates:
                break
            candidates.append((costs[first] + tokens + group_cost, first))
        cost, start = min(candidates)
        costs.append(cost)
        starts.append(start)
    groups: list[list[int]] = []
    end = len(order)
    while end:
        groups.insert(0, order[starts[end] : end])
        end = starts[end]
    return groups
