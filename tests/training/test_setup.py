"""What is set up before training: devices, precision, tracker; and that it is undone afterwards."""

import logging
import signal
from pathlib import Path

import datasets
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from training_run import write_pairs
from transformers.utils import logging as transformers_logging

from tinybert_hf import InputError, RetrievalArguments, train_retrieval
from tinybert_hf.errors import MissingExtraError
from tinybert_hf.training.arguments import TrainingArguments
from tinybert_hf.training.setup import build_accelerator, choose_precision


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
    monkeypatch: pytest.MonkeyPatch,
    environment: str | None,
    chosen: bool,
    hardware: torch.dtype,
    expected: str,
) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if environment:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", environment)
    monkeypatch.setattr("tinybert_hf.training.setup.precision_was_chosen", lambda: chosen)
    monkeypatch.setattr("tinybert_hf.training.setup.fast_dtype", lambda device: hardware)
    assert choose_precision() == expected


def test_a_launcher_that_shards_the_model_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(
        InputError, match="a whole model on every device, and accelerate was configured for FSDP"
    ):
        build_accelerator(TrainingArguments(report_to="none", output_dir=str(tmp_path)))


def test_a_tracker_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises((InputError, MissingExtraError), match="no-such-tracker"):
        build_accelerator(TrainingArguments(report_to="no-such-tracker", output_dir=str(tmp_path)))


def test_a_training_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    def settings() -> tuple:
        loggers = [logging.getLogger(name).level for name in ("accelerate", "httpx", "tinybert_hf")]
        bars = transformers_logging.is_progress_bar_enabled(), datasets.are_progress_bars_disabled()
        return signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), loggers, bars

    logging.getLogger("accelerate").setLevel(logging.ERROR)
    before = settings()
    pairs = write_pairs(tmp_path / "pairs.csv", 80, seed=0)
    sizes = "vocab_size=300,hidden_size=32,num_hidden_layers=1,num_attention_heads=4,intermediate_size=64"
    for precision in ("no", "bf16"):  # accelerate refuses another one in a process that has begun with one
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ACCELERATE_MIXED_PRECISION", precision)
            out = tmp_path / precision
            result = train_retrieval(
                RetrievalArguments(
                    data=str(pairs),
                    config_overrides=sizes,
                    eval_size=32,
                    max_steps=1,
                    output_dir=str(out),
                    per_device_train_batch_size=8,
                    report_to="none",
                )
            )
        assert result.summary["hardware"]["mixed_precision"] == precision
        assert settings() == before
