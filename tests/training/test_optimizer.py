"""What is stepped at which rate, step by step."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from tinybert_hf import RetrievalArguments, TinyBertModel
from tinybert_hf.errors import InputError
from tinybert_hf.training.arguments import Schedule, TrainingArguments
from tinybert_hf.training.trainer import build_optimizer, build_schedule

TYPES = get_args(Schedule)


def rates(model: TinyBertModel, arguments: TrainingArguments, max_steps: int) -> list[list[float]]:
    """The learning rates of every step: of the token embedding, of matrices, and of biases and norms."""
    optimizer = build_optimizer(model, arguments)
    schedule = build_schedule(optimizer, arguments, max_steps)
    steps = []
    for _ in range(max_steps):
        steps.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return steps


def test_the_token_embedding_has_a_learning_rate_of_its_own(model: TinyBertModel) -> None:
    arguments = TrainingArguments(learning_rate=0.1, embedding_learning_rate=0.3, weight_decay=0.5)
    groups = build_optimizer(model, arguments).param_groups
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == (0.3 if "word_embeddings" in name else 0.1), name
        assert decays[id(parameter)] == (0.5 if parameter.ndim > 1 else 0.0), name


def test_without_one_it_is_that_of_all_others(model: TinyBertModel) -> None:
    groups = build_optimizer(model, TrainingArguments(learning_rate=0.1)).param_groups
    assert [group["lr"] for group in groups] == [0.1] * 3


@pytest.mark.parametrize(
    ("max_steps", "warmup_ratio", "embedding", "others"),
    [
        (
            10,
            0.2,
            [0.0, 0.1, 0.2, 0.175, 0.15, 0.125, 0.1, 0.075, 0.05, 0.025],
            [0.0, 0.05, 0.1, 0.0875, 0.075, 0.0625, 0.05, 0.0375, 0.025, 0.0125],
        ),
        (
            7,
            0.0,
            [0.2, 0.171428571429, 0.142857142857, 0.114285714286, 0.085714285714, 0.057142857143, 0.028571428571],
            [0.1, 0.085714285714, 0.071428571429, 0.057142857143, 0.042857142857, 0.028571428571, 0.014285714286],
        ),
        (5, 0.5, [0.0, 0.1, 0.2, 0.133333333333, 0.066666666667], [0.0, 0.05, 0.1, 0.066666666667, 0.033333333333]),
    ],
)
def test_linear_is_the_schedule_of_earlier_versions(
    model: TinyBertModel, max_steps: int, warmup_ratio: float, embedding: list[float], others: list[float]
) -> None:
    """The numbers are those of commit f5892af, whose schedule was written out."""
    arguments = TrainingArguments(learning_rate=0.1, embedding_learning_rate=0.2, warmup_ratio=warmup_ratio)
    actual = list(zip(*rates(model, arguments, max_steps), strict=True))
    assert actual[0] == pytest.approx(embedding, abs=1e-11)
    assert actual[1] == actual[2] == pytest.approx(others, abs=1e-11)


def test_linear_is_the_default(model: TinyBertModel) -> None:
    assert TrainingArguments().lr_scheduler_type == "linear"


SHAPES = {  # of a step's rate after the warm-up, with t from 0 to 1
    "linear": lambda t, step: 1 - t,
    "cosine": lambda t, step: (1 + math.cos(math.pi * t)) / 2,
    "cosine_with_restarts": lambda t, step: (1 + math.cos(math.pi * t)) / 2,  # one cycle
    "polynomial": lambda t, step: 1 - t,  # of power 1, to nearly 0
    "constant": lambda t, step: 1.0,
    "constant_with_warmup": lambda t, step: 1.0,
    "inverse_sqrt": lambda t, step: math.sqrt(4 / step),
}


@pytest.mark.parametrize("kind", TYPES)
def test_each_schedule_has_its_shape_after_the_warm_up(model: TinyBertModel, kind: Schedule) -> None:
    arguments = TrainingArguments(
        learning_rate=0.1, embedding_learning_rate=0.2, warmup_ratio=0.2, lr_scheduler_type=kind
    )
    embedding, matrices, biases = zip(*rates(model, arguments, 20), strict=True)
    warm_up = [0.1] * 4 if kind == "constant" else [0, 0.025, 0.05, 0.075]
    expected = [0.1 * SHAPES[kind]((step - 4) / 16, step) for step in range(4, 20)]
    assert matrices == pytest.approx([*warm_up, *expected], abs=1e-7)
    assert embedding == pytest.approx([2 * rate for rate in matrices], abs=1e-7)
    assert biases == matrices


def test_the_types_are_those_of_the_flag() -> None:
    assert set(SHAPES) == set(TYPES)
    with pytest.raises(InputError, match=r"--lr_scheduler_type must be one of linear, .*, got 'steps'"):
        RetrievalArguments(lr_scheduler_type="steps")  # type: ignore[arg-type]


def test_a_schedule_goes_on_from_its_state(model: TinyBertModel) -> None:
    arguments = TrainingArguments(learning_rate=0.1, embedding_learning_rate=0.2, lr_scheduler_type="cosine")
    whole = rates(model, arguments, 20)

    def schedule() -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        optimizer = build_optimizer(model, arguments)
        return optimizer, build_schedule(optimizer, arguments, 20)

    optimizer, first = schedule()
    for _ in range(9):
        optimizer.step()
        first.step()
    state, momenta = first.state_dict(), optimizer.state_dict()
    optimizer, second = schedule()
    optimizer.load_state_dict(momenta)
    second.load_state_dict(state)
    for step in range(9, 20):
        assert [group["lr"] for group in optimizer.param_groups] == whole[step]
        optimizer.step()
        second.step()


def test_decay_is_that_of_adamw(model: TinyBertModel) -> None:
    """Without a gradient's share: p x (1 - lr x decay), for matrices only."""
    optimizer = build_optimizer(model, TrainingArguments(learning_rate=0.1, weight_decay=0.5))
    before: dict[str, Tensor] = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * (0.95 if parameter.ndim > 1 else 1.0))
