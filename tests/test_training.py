"""The training loop: what it leaves behind, and that a killed run ends with the bytes of an uninterrupted one."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from training_run import ROOT, start, train, write_pairs

from tinybert_hf import TinyBertModel
from tinybert_hf.arguments import TrainingArguments
from tinybert_hf.checkpoints import list_checkpoints
from tinybert_hf.training import (
    build_accelerator,
    build_optimizer,
    build_schedule,
    choose_precision,
    load_encoder,
)

TINY = (
    "vocab_size=300,hidden_size=32,num_hidden_layers=2,residual_initializer_range=0.1,"
    "num_attention_heads=4,intermediate_size=64,"
    "max_position_embeddings=32"
)
SAVE_STEPS, MAX_STEPS = 7, 40  # 12 steps an epoch: checkpoints fall into the middle of epochs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder / "train.csv", 100, seed=0)
    write_pairs(folder / "validation.csv", 40, seed=1)
    return folder


def flags(data: Path, output_dir: Path, *more: str) -> list[str]:
    return [
        *("--data", str(data / "train.csv"), "--eval_data", str(data / "validation.csv")),
        *("--config_overrides", TINY, "--output_dir", str(output_dir), "--per_device_train_batch_size", "8"),
        *("--max_steps", str(MAX_STEPS), "--save_steps", str(SAVE_STEPS), "--logging_steps", "3"),
        *("--learning_rate", "0.002", "--warm_start_epochs", "1"),  # 12 of the 40 steps
        *("--report_to", "none", "--resume_from_checkpoint", "auto", *more),
    ]


def weights(output_dir: Path) -> bytes:
    """The bytes of the last checkpoint's model: what training computed, whichever step was the best."""
    return (output_dir / f"checkpoint-{MAX_STEPS}" / "model.safetensors").read_bytes()


def wait_for_checkpoint(output_dir: Path, step: int = 1) -> None:
    """Return as soon as a checkpoint of this step or a later one is complete."""
    deadline = time.monotonic() + 120
    while not any(
        int(path.name.removeprefix("checkpoint-")) >= step for path in list_checkpoints(output_dir)
    ):
        if step == 0 and output_dir.exists():
            return
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    train("train_retrieval", flags(data, folder / "out"), folder / "log")
    return folder / "out"


def test_a_run_leaves_a_model_its_summary_and_two_checkpoints(uninterrupted: Path) -> None:
    summary = json.loads((uninterrupted / "retrieval_summary.json").read_text())
    kept = {path.name for path in list_checkpoints(uninterrupted)}
    assert kept == {f"checkpoint-{summary['best_step']}", f"checkpoint-{MAX_STEPS}"}
    best = uninterrupted / f"checkpoint-{summary['best_step']}"
    for name in ("model.safetensors", "config.json", "tokenizer.json", "modeling_tinybert.py"):
        assert (uninterrupted / name).read_bytes() == (best / name).read_bytes()
    assert not list(uninterrupted.glob("unfinished-*"))


def test_the_summary_holds_what_the_history_measured(uninterrupted: Path) -> None:
    summary = json.loads((uninterrupted / "retrieval_summary.json").read_text())
    evaluations = {entry["step"]: entry for entry in summary["history"] if "eval_nDCG@10" in entry}
    assert list(evaluations) == [0, *range(SAVE_STEPS, MAX_STEPS, SAVE_STEPS), MAX_STEPS]
    best = max(list(evaluations)[1:], key=lambda step: evaluations[step]["eval_nDCG@10"])
    assert summary["best_step"] == best
    assert summary["results"]["nDCG@10"] == evaluations[best]["eval_nDCG@10"]
    assert summary["data"]["train_rows"] == 100
    assert summary["arguments"]["learning_rate"] == 0.002


def test_training_learns(uninterrupted: Path) -> None:
    summary = json.loads((uninterrupted / "retrieval_summary.json").read_text())
    losses = [entry["loss"] for entry in summary["history"] if "loss" in entry]
    assert losses[-1] < losses[0] - 0.2


def test_killed_at_ten_random_moments_a_run_ends_with_the_same_bytes(
    data: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    rng = random.Random(0)
    killed = resumed = 0
    for moment in range(10):
        output_dir = tmp_path / f"out-{moment}"
        arguments = flags(data, output_dir)
        (process,) = start("train_retrieval", arguments, tmp_path / "log")
        wait_for_checkpoint(output_dir, step=rng.randrange(0, MAX_STEPS - SAVE_STEPS))
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        resumed += bool(list_checkpoints(output_dir))
        train("train_retrieval", arguments, tmp_path / "log")
        assert weights(output_dir) == weights(uninterrupted), f"moment {moment}"
        shutil.rmtree(output_dir)
    assert killed >= 5, "this test would be vacuous: the runs ended before they were killed"
    assert resumed >= 5, "this test would be vacuous: no run had a checkpoint to resume from"


def test_a_checkpoint_whose_writing_was_killed_is_not_picked_up(
    data: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    output_dir = tmp_path / "out"
    code = f"""
import os, signal, sys
import tinybert_hf.training as training
import train_retrieval
def die_in_the_second_save(tokenizer, folder, save=training.save_tokenizer):
    if "checkpoint-{2 * SAVE_STEPS}" in str(folder):
        os.kill(os.getpid(), signal.SIGKILL)
    save(tokenizer, folder)
training.save_tokenizer = die_in_the_second_save
sys.argv = ["train_retrieval.py", *{flags(data, output_dir)!r}]
train_retrieval.main()
"""
    died = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert died.returncode == -signal.SIGKILL
    assert list(output_dir.glob("unfinished-*")), "this test would be vacuous: the save was not interrupted"
    assert [path.name for path in list_checkpoints(output_dir)] == [f"checkpoint-{SAVE_STEPS}"]
    train("train_retrieval", flags(data, output_dir), tmp_path / "log")
    assert weights(output_dir) == weights(uninterrupted)
    assert not list(output_dir.glob("unfinished-*"))


def test_dropout_is_part_of_what_is_resumed(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """Guards the tests above: with another seed or without dropout the bytes differ."""
    for name, more in {"seed": ["--seed", "1"], "dropout": []}.items():
        arguments = flags(data, tmp_path / name, *more)
        if name == "dropout":
            arguments[arguments.index(TINY)] = TINY + ",hidden_dropout_prob=0,attention_probs_dropout_prob=0"
        train("train_retrieval", arguments, tmp_path / "log")
        assert weights(tmp_path / name) != weights(uninterrupted)


def test_mined_negatives_are_part_of_what_is_resumed(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    arguments = flags(data, tmp_path / "killed", "--mined_negatives", "1")
    train("train_retrieval", flags(data, tmp_path / "whole", "--mined_negatives", "1"), tmp_path / "log")
    (process,) = start("train_retrieval", arguments, tmp_path / "log")
    wait_for_checkpoint(tmp_path / "killed", step=21)  # in the middle of an epoch after the warm start
    process.kill()
    process.join()
    train("train_retrieval", arguments, tmp_path / "log")
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert weights(tmp_path / "whole") != weights(uninterrupted)


def test_two_processes_killed_and_resumed_end_with_the_same_bytes(data: Path, tmp_path: Path) -> None:
    train("train_retrieval", flags(data, tmp_path / "whole"), tmp_path / "log", num_processes=2)
    arguments = flags(data, tmp_path / "killed")
    processes = start("train_retrieval", arguments, tmp_path / "log", num_processes=2)
    wait_for_checkpoint(tmp_path / "killed")
    for process in processes:
        process.kill()
        process.join()
    assert not (tmp_path / "killed" / "retrieval_summary.json").exists(), "this test would be vacuous"
    train("train_retrieval", arguments, tmp_path / "log", num_processes=2)
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def test_two_processes_train_what_one_trains_with_the_joint_batch(data: Path, tmp_path: Path) -> None:
    """Each step's loss depends on all the gradients before it; the weights themselves are no measure, since Adam blows
    the rounding of gradients near zero up to full steps."""
    losses = {}
    for num_processes, batch_size in ((1, "16"), (2, "8")):
        arguments = flags(data, tmp_path / str(num_processes), "--max_steps", "8", "--logging_steps", "1")
        arguments[arguments.index(TINY)] = TINY + ",hidden_dropout_prob=0,attention_probs_dropout_prob=0"
        arguments[arguments.index("--per_device_train_batch_size") + 1] = batch_size
        train("train_retrieval", arguments, tmp_path / "log", num_processes)
        summary = json.loads((tmp_path / str(num_processes) / "retrieval_summary.json").read_text())
        losses[num_processes] = [entry["loss"] for entry in summary["history"] if "loss" in entry]
    assert losses[2] == pytest.approx(losses[1], rel=1e-4)
    assert losses[1][-1] < 0.99 * losses[1][0], "this test would be vacuous: nothing was learned"


@pytest.mark.parametrize("num_processes", ["1", "2"])
def test_sigterm_to_accelerate_launch_saves_and_leaves(
    data: Path, tmp_path: Path, num_processes: str
) -> None:
    output_dir = tmp_path / "out"
    long = flags(data, output_dir, "--max_steps", "100000", "--save_steps", "20")
    command = [str(Path(sys.executable).with_name("accelerate")), "launch", "--num_processes", num_processes]
    with (tmp_path / "log").open("w") as log:
        launcher = subprocess.Popen(
            [*command, "train_retrieval.py", *long], cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for_checkpoint(output_dir)
        launcher.terminate()
        launcher.wait(timeout=60)
        deadline = time.monotonic() + 60
        while "Stopped by a signal" not in (tmp_path / "log").read_text():
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.1)
    finally:
        os.killpg(launcher.pid, signal.SIGKILL) if group_lives(launcher.pid) else None
    last = list_checkpoints(output_dir)[-1]
    state = json.loads((last / "training_state.json").read_text())
    assert state["run"]["num_processes"] == int(num_processes)
    assert f"step {state['step']} of 100000 is saved" in (tmp_path / "log").read_text()


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


# ---- What is refused, with a message ----


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--resume_from_checkpoint", "nowhere"], "nowhere is no checkpoint"),
        (["--learning_rate", "0.001"], "learning_rate was 0.002, now 0.001"),
        (["--config_overrides", "hidden_siz=3"], "belongs to another run"),
        (["--max_steps", "50"], "max_steps was 40, now 50"),
    ],
)
def test_a_resume_that_is_not_the_same_run_is_refused(
    data: Path, uninterrupted: Path, tmp_path: Path, more: list[str], message: str
) -> None:
    before = weights(uninterrupted)
    (process,) = start("train_retrieval", flags(data, uninterrupted, *more), tmp_path / "log")
    process.join()
    assert process.exitcode == 1
    assert message in (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert weights(uninterrupted) == before


def test_a_folder_with_a_run_is_not_overwritten(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    arguments = [
        flag for flag in flags(data, uninterrupted) if flag not in ("--resume_from_checkpoint", "auto")
    ]
    (process,) = start("train_retrieval", arguments, tmp_path / "log")
    process.join()
    assert process.exitcode == 1
    assert "holds a run already. Pass --resume_from_checkpoint auto" in (tmp_path / "log").read_text()


def test_overrides_that_a_model_has_already_are_no_contradiction(model_folder: Path) -> None:
    sizes = "max_position_embeddings=32,hidden_dropout_prob=0.1"
    assert load_encoder(str(model_folder), sizes).source == str(model_folder)
    with pytest.raises(ValueError, match=r"brings its own configuration \(hidden_size=32, pooling=cls\)"):
        load_encoder(str(model_folder), sizes + ",hidden_size=64,pooling=mean")


def test_a_finished_run_resumed_changes_nothing(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in uninterrupted.rglob("*.safetensors")}
    train("train_retrieval", flags(data, uninterrupted), tmp_path / "log")
    assert {path: path.read_bytes() for path in uninterrupted.rglob("*.safetensors")} == before


def test_a_killed_run_frees_its_folder(data: Path, tmp_path: Path) -> None:
    arguments = flags(data, tmp_path / "out", "--max_steps", "100000")
    (process,) = start("train_retrieval", arguments, tmp_path / "log")
    wait_for_checkpoint(tmp_path / "out")
    process.kill()
    process.join()
    arguments = flags(data, tmp_path / "out")
    (process,) = start("train_retrieval", arguments, tmp_path / "log")
    process.join()
    assert "max_steps was 100000, now 40" in (tmp_path / "log").read_text()  # it came past the lock


def test_the_token_embedding_has_a_learning_rate_of_its_own(model: TinyBertModel) -> None:
    arguments = TrainingArguments(learning_rate=0.1, embedding_learning_rate=0.3, weight_decay=0.5)
    groups = build_optimizer(model, arguments).param_groups
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == (0.3 if "word_embeddings" in name else 0.1), name
        assert decays[id(parameter)] == (0.5 if parameter.ndim > 1 else 0.0), name


def test_the_warm_start_trains_the_token_embedding_alone(model: TinyBertModel) -> None:
    arguments = TrainingArguments(learning_rate=0.1, embedding_learning_rate=0.2)
    optimizer = build_optimizer(model, arguments)
    schedule = build_schedule(optimizer, 14, 0.2, warm_start_steps=4, warm_start_learning_rate=0.8)
    rates = []
    for _ in range(14):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    embedding, matrices, biases = zip(*rates, strict=True)
    assert embedding[:4] == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert matrices[:4] == (0, 0, 0, 0)
    assert matrices[4:] == pytest.approx([0, 0.05, 0.1, *(0.1 * i / 8 for i in range(7, 0, -1))])
    assert embedding[4:] == pytest.approx([2 * rate for rate in matrices[4:]])
    assert biases == matrices


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
    monkeypatch.setattr("tinybert_hf.training.precision_was_chosen", lambda: chosen)
    monkeypatch.setattr("tinybert_hf.training.fast_dtype", lambda device: hardware)
    assert choose_precision() == expected


def test_a_launcher_that_shards_the_model_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(
        ValueError, match="a whole model on every device, and accelerate was configured for FSDP"
    ):
        build_accelerator(TrainingArguments(report_to="none", output_dir=str(tmp_path)))
