"""Which rows make up which batch."""

from itertools import chain

import pytest

from tinybert_hf.training.sampler import StepSampler, choose_batch_size, choose_epochs


def batches(sampler: StepSampler, start_step: int = 0, max_steps: int = 6) -> list[list[int]]:
    """The micro-batches of these steps, one after the other."""
    return list(chain(*map(sampler.micro_batches, range(start_step, max_steps))))


def test_an_epoch_uses_every_row_once() -> None:
    sampler = StepSampler(num_rows=12, batch_size=4)
    assert sampler.steps_per_epoch == 3
    first, second = batches(sampler)[:3], batches(sampler)[3:]
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(12))
    assert first != second


def test_starting_late_gives_the_same_batches() -> None:
    def sampler() -> StepSampler:
        return StepSampler(num_rows=13, batch_size=2, gradient_accumulation_steps=2)

    whole = batches(sampler(), max_steps=8)
    assert len(whole) == 16
    for step in range(8):
        assert batches(sampler(), start_step=step, max_steps=8) == whole[2 * step :]


def test_a_step_is_a_function_of_its_number_in_any_order() -> None:
    sampler = StepSampler(num_rows=13, batch_size=4)
    forwards = [sampler.micro_batches(step) for step in range(9)]
    backwards = [sampler.micro_batches(step) for step in reversed(range(9))]
    assert backwards[::-1] == forwards
    assert len({tuple(rows) for (rows,) in forwards}) == 9, "this test would be vacuous: all steps are alike"


def test_processes_share_the_joint_batch_of_one_process() -> None:
    joint = batches(StepSampler(num_rows=20, batch_size=4, gradient_accumulation_steps=2))
    parts = [
        batches(StepSampler(num_rows=20, batch_size=2, gradient_accumulation_steps=2, process_index=r, num_processes=2))
        for r in range(2)
    ]
    assert [first + second for first, second in zip(*parts, strict=True)] == joint


def test_another_seed_gives_another_order() -> None:
    assert batches(StepSampler(20, 4, seed=0)) != batches(StepSampler(20, 4, seed=1))


def test_too_few_rows_for_one_step_are_refused() -> None:
    with pytest.raises(ValueError, match=r"7 rows, one optimizer step takes 8 \(2 x 2 accumulated x 2 processes\)"):
        StepSampler(num_rows=7, batch_size=2, gradient_accumulation_steps=2, num_processes=2)


def test_a_batch_is_no_larger_than_the_data_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert choose_batch_size(256, num_rows=90, batches=2) == 45
    assert caplog.messages == ["A batch has 45 rows in place of 256: there are only 90 to train on."]
    assert choose_batch_size(45, num_rows=90, batches=2) == 45


@pytest.mark.parametrize(("rows", "batch_size", "epochs"), [(20, 20, 30), (90, 32, 15), (270, 64, 8), (17_000, 256, 1)])
def test_auto_gives_small_data_thirty_steps(rows: int, batch_size: int, epochs: int) -> None:
    size = choose_batch_size("auto", rows)
    steps = StepSampler(rows, size).steps_per_epoch
    assert (size, choose_epochs("auto", steps)) == (batch_size, epochs)
    assert steps * epochs >= 30
