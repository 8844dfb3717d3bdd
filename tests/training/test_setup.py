"""What is set up before training: devices, precision, tracker; and that it is undone afterwards."""

import logging
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType
from shared_fixtures import forget_accelerator
from training_run import TINY, write_pairs
from transformers.utils import logging as transformers_logging

from tinybert_hf import InputError, RetrievalArguments, train_retrieval
from tinybert_hf.errors import MissingExtraError, MissingFileError
from tinybert_hf.training.arguments import TrainingArguments
from tinybert_hf.training.retrieval import RetrievalStage
from tinybert_hf.training.setup import build_accelerator, choose_precision


@pytest.fixture(autouse=True)
def own_state() -> Iterator[None]:
    """Each test has an accelerate that was never asked for anything."""
    forget_accelerator()
    yield
    forget_accelerator()


# ---- The accelerator ----


@pytest.mark.parametrize(
    ("environment", "chosen", "hardware", "expected"),
    [
        (None, True, torch.bfloat16, "bf16"),
        ("no", False, torch.bfloat16, "bf16"),  # accelerate launch says so unasked
        ("no", False, torch.float32, "no"),
        ("no", True, torch.bfloat16, "no"),
        ("fp16", True, torch.bfloat16, "fp16"),
    ],
)
def test_the_precision_is_what_was_asked_for_or_what_the_hardware_has(
    monkeypatch: pytest.MonkeyPatch, environment: str | None, chosen: bool, hardware: torch.dtype, expected: str
) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if environment:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", environment)
    monkeypatch.setattr("tinybert_hf.training.setup.precision_was_chosen", lambda: chosen)
    monkeypatch.setattr("tinybert_hf.training.setup.fast_dtype", lambda device: hardware)
    assert choose_precision() == expected


def test_a_launcher_that_shards_the_model_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(InputError, match="a whole model on every device, and accelerate was configured for FSDP"):
        build_accelerator(TrainingArguments(report_to="none", output_dir=str(tmp_path)))


def test_an_unknown_tracker_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"accelerate does not take these settings: .*no-such-tracker"):
        build_accelerator(TrainingArguments(report_to="no-such-tracker", output_dir=str(tmp_path)))


@pytest.mark.filterwarnings("ignore:.*no supported trackers are currently installed:UserWarning")
def test_a_tracker_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("accelerate.tracking._available_trackers", [])
    with pytest.raises(MissingExtraError, match="tracker tensorboard is not installed; pip install tensorboard"):
        build_accelerator(TrainingArguments(report_to="tensorboard", output_dir=str(tmp_path)))


@pytest.mark.parametrize("report_to", ["none", "tensorboard"])
def test_the_tracker_is_what_was_asked_for(tmp_path: Path, report_to: str) -> None:
    accelerator = build_accelerator(
        TrainingArguments(report_to=report_to, output_dir=str(tmp_path), gradient_accumulation_steps=3)
    )
    assert [str(tracker) for tracker in accelerator.log_with] == ([] if report_to == "none" else [report_to])
    assert accelerator.logging_dir == str(tmp_path / "runs")
    assert accelerator.gradient_accumulation_steps == 3


# ---- The process ----


def process_settings() -> dict[str, Any]:
    """What a training changes for its time."""
    names = (None, "accelerate", "bm25s", "httpx", "tinybert_hf")
    loggers = [logging.getLogger(name) for name in names]
    return {
        "signals": [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)],
        "levels": [logger.level for logger in loggers],
        "handlers": [list(logger.handlers) for logger in loggers],
        "transformers' bars": transformers_logging.is_progress_bar_enabled(),
        "datasets' bars": datasets.are_progress_bars_disabled(),
        "accelerate": [bool(state._shared_state) for state in (AcceleratorState, GradientState, PartialState)],
    }


@pytest.fixture(params=[True, False], ids=["bars on", "bars off"])
def as_it_was(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """Settings that a user made; they must hold after the test too."""
    forget_accelerator()
    before = process_settings()
    levels = {"accelerate": logging.ERROR, "bm25s": logging.DEBUG, "httpx": logging.NOTSET, "tinybert_hf": logging.INFO}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    (transformers_logging.enable_progress_bar if request.param else transformers_logging.disable_progress_bar)()
    (datasets.enable_progress_bars if request.param else datasets.disable_progress_bars)()
    yield process_settings()
    for name, level in zip(("accelerate", "bm25s", "httpx", "tinybert_hf"), before["levels"][1:], strict=True):
        logging.getLogger(name).setLevel(level)
    (
        transformers_logging.enable_progress_bar
        if before["transformers' bars"]
        else transformers_logging.disable_progress_bar
    )()
    (datasets.disable_progress_bars if before["datasets' bars"] else datasets.enable_progress_bars)()


def small_run(folder: Path, **more: Any) -> RetrievalArguments:
    pairs = write_pairs(folder / "pairs.csv", 80, seed=0)
    values = {
        "data": str(pairs),
        "config_overrides": TINY,
        "eval_size": 32,
        "max_steps": 1,
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": 8,
        "report_to": "none",
    }
    return RetrievalArguments(**values | more)


@pytest.mark.slow
def test_a_training_leaves_the_process_as_it_was(as_it_was: dict[str, Any], tmp_path: Path) -> None:
    for precision in ("no", "bf16"):  # accelerate refuses another one in a process that has begun with one
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ACCELERATE_MIXED_PRECISION", precision)
            result = train_retrieval(small_run(tmp_path, output_dir=str(tmp_path / precision)))
        assert result.summary["hardware"]["mixed_precision"] == precision
        assert result.folder == tmp_path / precision
        assert process_settings() == as_it_was


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"report_to": "no-such-tracker"}, InputError),  # before there is an accelerator
        ({"resume_from_checkpoint": "nowhere"}, MissingFileError),
        ({"query_column": "question"}, InputError),  # while the stage is built
    ],
)
def test_a_training_that_fails_does_so_too(
    as_it_was: dict[str, Any], tmp_path: Path, more: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        train_retrieval(small_run(tmp_path, **more))
    assert process_settings() == as_it_was


def test_a_bug_in_the_loop_does_so_too(
    as_it_was: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def fail(stage: RetrievalStage, model: Any, batch: Any) -> None:
        seen.append(process_settings())
        raise ZeroDivisionError

    monkeypatch.setattr(RetrievalStage, "backward", fail)
    with pytest.raises(ZeroDivisionError):
        train_retrieval(small_run(tmp_path))
    assert process_settings() == as_it_was
    (inside,) = seen
    assert inside["signals"] != as_it_was["signals"], "this test would be vacuous: nothing is changed"
    assert inside["levels"][1:4] == [logging.WARNING] * 3
    assert not inside["transformers' bars"] and all(inside["accelerate"])
    assert inside["datasets' bars"] is True  # disabled: standard error is no terminal


@pytest.mark.filterwarnings("ignore:.*no supported trackers are currently installed:UserWarning")
def test_a_failed_start_may_be_followed_by_one_of_another_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_accelerator()
    monkeypatch.setattr("accelerate.tracking._available_trackers", [])
    with pytest.raises(MissingExtraError):
        train_retrieval(small_run(tmp_path, report_to="tensorboard"))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    result = train_retrieval(small_run(tmp_path))
    assert result.summary["hardware"]["mixed_precision"] == "bf16"
