"""Which rows make up which batch, and which texts pass through the encoder together."""

import random
from collections.abc import Iterator
from itertools import chain, pairwise

import pytest

from tinybert_hf.batching import StepSampler, cut_by_length


def batches(sampler: StepSampler, start_step: int = 0, max_steps: int = 6) -> list[list[int]]:
    sampler.start_step, sampler.max_steps = start_step, max_steps
    return list(sampler)


def test_an_epoch_uses_every_row_once() -> None:
    sampler = StepSampler(num_rows=12, batch_size=4)
    assert sampler.steps_per_epoch == 3
    first, second = batches(sampler)[:3], batches(sampler)[3:]
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(12))
    assert first != second


def test_starting_late_gives_the_same_batches() -> None:
    sampler = StepSampler(num_rows=13, batch_size=2, gradient_accumulation_steps=2)
    whole = batches(sampler, max_steps=8)
    for step in range(8):
        assert batches(sampler, start_step=step, max_steps=8) == whole[2 * step :]


def test_processes_share_the_joint_batch_of_one_process() -> None:
    joint = batches(StepSampler(num_rows=20, batch_size=4, gradient_accumulation_steps=2))
    parts = [
        batches(
            StepSampler(
                num_rows=20, batch_size=2, gradient_accumulation_steps=2, process_index=r, num_processes=2
            )
        )
        for r in range(2)
    ]
    assert [first + second for first, second in zip(*parts, strict=True)] == joint


def test_another_seed_gives_another_order() -> None:
    assert batches(StepSampler(20, 4, seed=0)) != batches(StepSampler(20, 4, seed=1))


def test_too_few_rows_for_one_step_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"7 rows, one optimizer step takes 8 \(2 x 2 accumulated x 2 processes\)"
    ):
        StepSampler(num_rows=7, batch_size=2, gradient_accumulation_steps=2, num_processes=2)


def cost(lengths: list[int], groups: list[list[int]], group_cost: int) -> int:
    """Padded tokens, and what the groups take."""
    return sum(len(group) * max(lengths[i] for i in group) + group_cost for group in groups)


def all_cuts(lengths: list[int], max_tokens: int) -> Iterator[list[list[int]]]:
    """Every way to cut texts sorted by length into groups that may be."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for bits in range(2 ** (len(order) - 1)):
        places = [0, *(i + 1 for i in range(len(order) - 1) if bits >> i & 1), len(order)]
        groups = [order[first:last] for first, last in pairwise(places)]
        if all(len(group) == 1 or len(group) * lengths[group[0]] <= max_tokens for group in groups):
            yield groups


@pytest.mark.parametrize(("max_tokens", "group_cost"), [(60, 5), (60, 40), (20, 5), (1000, 0)])
def test_no_other_cut_takes_less(max_tokens: int, group_cost: int) -> None:
    rng = random.Random(max_tokens + group_cost)
    for _ in range(5):
        lengths = [rng.randint(1, 25) for _ in range(9)]
        groups = cut_by_length(lengths, max_tokens, group_cost)
        assert sorted(chain(*groups)) == list(range(9))
        assert all(len(group) == 1 or len(group) * lengths[group[0]] <= max_tokens for group in groups)
        least = min(cost(lengths, other, group_cost) for other in all_cuts(lengths, max_tokens))
        assert cost(lengths, groups, group_cost) == least


def test_nothing_is_cut_into_no_groups() -> None:
    assert cut_by_length([], max_tokens=10, group_cost=1) == []
