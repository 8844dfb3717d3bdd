"""What the loop may rely on in every stage: a batch is a function of its arguments, whatever was asked for before."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from training_run import TINY, WORDS, write_pairs

from tinybert_hf import RetrievalArguments, SentimentArguments, kernels
from tinybert_hf.training import retrieval, sentiment
from tinybert_hf.training.stage import Stage

KINDS = {  # and the texts of a row
    "pairs": 2,
    "negatives": 4,
    "mined": 4,
    "documents": 2,
    "sentiment": 1,
}


def build(kind: str, folder: Path, accelerator: Accelerator) -> Stage:
    """A stage of 48 rows or more, 8 a step."""
    folder.mkdir()
    shared: dict[str, Any] = {"config_overrides": TINY, "output_dir": str(folder), "per_device_train_batch_size": 8}
    if kind == "sentiment":
        rows = [{"sentence": f"{WORDS[i % 16]} {WORDS[i // 5]} {i}", "label": i % 3} for i in range(80)]
        return sentiment.SentimentStage(SentimentArguments(data=rows, eval_size=32, **shared), accelerator, None)
    if kind == "documents":
        texts = [f"number {i} {WORDS[i % 16]} is here. It is {WORDS[i // 5]} of {i} parts or so." for i in range(80)]
        shared["documents"] = [{"text": text} for text in texts]
    elif kind == "negatives":
        names = ("query", "answer", "near", "far")
        shared["data"] = [{name: f"{name} {WORDS[i % 16]} {i}" for name in names} for i in range(80)]
        shared["negative_columns"] = ["near", "far"]
    else:
        shared["data"] = str(write_pairs(folder / "pairs.csv", 100, seed=0))
    more = {"mined_negatives": 2} if kind == "mined" else {}
    return retrieval.build_stage(RetrievalArguments(eval_size=32, **shared, **more), accelerator, None)


def tensors(value: Any) -> list[Tensor]:
    """All tensors of a batch, however they are kept."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for name in sorted(value) for tensor in tensors(value[name])]
    return [tensor for part in value for tensor in tensors(part)] if isinstance(value, list | tuple) else []


def equal(first: Any, second: Any) -> bool:
    pairs = list(zip(tensors(first), tensors(second), strict=False))
    assert pairs
    return len(tensors(first)) == len(tensors(second)) and all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture(params=KINDS)
def stages(request: pytest.FixtureRequest, tmp_path: Path, accelerator: Accelerator) -> tuple[Stage, Stage]:
    """The same stage twice, prepared for the steps of one epoch."""
    first, second = (build(request.param, tmp_path / name, accelerator) for name in ("first", "second"))
    second.model.load_state_dict(first.model.state_dict())
    for stage in (first, second):
        stage.prepare(stage.model, first_step(stage))
    return first, second


def first_step(stage: Stage) -> int:
    """A step of the third epoch."""
    return 2 * stage.sampler.steps_per_epoch


def test_a_batch_is_the_same_however_often_and_in_whatever_order_it_is_asked_for(stages: tuple[Stage, Stage]) -> None:
    stage, fresh = stages
    steps = range(first_step(stage), first_step(stage) + 4)
    batches = {step: stage.batch(stage.sampler.micro_batches(step)[0], step) for step in steps}
    for step in reversed(steps):
        (rows,) = stage.sampler.micro_batches(step)
        assert equal(stage.batch(rows, step), batches[step])
    state = torch.get_rng_state()
    last = steps[-1]
    assert equal(fresh.batch(fresh.sampler.micro_batches(last)[0], last), batches[last]), "the first one asked for"
    assert torch.equal(torch.get_rng_state(), state), "no random number is drawn"
    assert not equal(batches[steps[0]], batches[last]), "this test would be vacuous: all batches are alike"


def test_a_batch_does_not_depend_on_what_was_trained_on(stages: tuple[Stage, Stage]) -> None:
    """The loop of earlier versions had to make a batch just before its step."""
    stage, _ = stages
    step = first_step(stage)
    (rows,) = stage.sampler.micro_batches(step)
    before = stage.batch(rows, step)
    stage.backward(stage.model.train(), stage.batch(rows, step + 1))
    with torch.no_grad():
        for parameter in stage.model.parameters():
            parameter.add_(torch.randn_like(parameter))
    stage.evaluate(stage.model)
    assert equal(stage.batch(rows, step), before)


def test_the_order_of_the_rows_is_the_order_of_the_batch(stages: tuple[Stage, Stage]) -> None:
    stage, _ = stages
    assert not equal(stage.batch([0, 1, 2], first_step(stage)), stage.batch([2, 1, 0], first_step(stage)))


def test_what_a_checkpoint_keeps_makes_the_same_batches(stages: tuple[Stage, Stage], tmp_path: Path) -> None:
    stage, fresh = stages
    fresh.load_state_dict(stage.state_dict())
    step = first_step(stage) + 1
    (rows,) = stage.sampler.micro_batches(step)
    assert equal(fresh.batch(rows, step), stage.batch(rows, step))


@pytest.mark.parametrize("kind", KINDS)
def test_a_stage_tells_what_the_summary_needs(kind: str, tmp_path: Path, accelerator: Accelerator) -> None:
    stage = build(kind, tmp_path / "out", accelerator)
    facts = stage.facts()
    assert facts["data"] and facts["train_rows"] == stage.sampler.num_rows and facts["eval_rows"] == 32
    assert stage.texts_per_row == KINDS[kind]
    measures = stage.evaluate(stage.model)
    assert stage.best_measure in measures
    for system in stage.baselines().values():
        assert set(system) <= set(measures)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_computed_by_the_kernels(
    kind: str, tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their masks and packed weights."""
    used: set[str] = set()
    for name in ("dropout", "multiply_packed"):
        original = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *a, _of=original, _as=name, **k: (used.add(_as), _of(*a, **k))[1])
    monkeypatch.setattr(kernels, "LEAST_TOKENS_TO_PACK", 1)
    stage = build(kind, tmp_path / "out", accelerator)
    step = first_step(stage)
    stage.prepare(stage.model, step)
    used.clear()
    stage.backward(stage.model.train(), stage.batch(stage.sampler.micro_batches(step)[0], step))
    expected = {"dropout"}
    if kind != "sentiment" and kernels.can_pack(torch.float32):
        expected.add("multiply_packed")
    assert used == expected
