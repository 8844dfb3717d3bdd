"""The training loop: what it leaves behind, and that a killed run ends with the bytes of an uninterrupted one."""

import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import datasets
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_run import NO_DROPOUT, ROOT, context, run_command, start, train, write_pairs

from tinybert_hf import RetrievalArguments, train_retrieval
from tinybert_hf.errors import InputError, UnreadableError
from tinybert_hf.files import find_damage, write_manifest
from tinybert_hf.publish.model_card import Origin
from tinybert_hf.training import trainer
from tinybert_hf.training.arguments import Schedule
from tinybert_hf.training.checkpoints import list_checkpoints
from tinybert_hf.training.retrieval import RetrievalStage
from tinybert_hf.training.setup import TrainingResult

pytestmark = pytest.mark.slow  # each test trains

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
        *("--learning_rate", "0.002"),
        *("--report_to", "none", "--resume_from_checkpoint", "auto", *more),
    ]


def weights(output_dir: Path) -> bytes:
    """The bytes of the last checkpoint's model: what training computed, whichever step was the best."""
    return (output_dir / f"checkpoint-{MAX_STEPS}" / "model.safetensors").read_bytes()


def wait_for_checkpoint(output_dir: Path, step: int = 1) -> None:
    """Return as soon as a checkpoint of this step or a later one is complete."""
    deadline = time.monotonic() + 120
    while True:
        with suppress(FileNotFoundError):  # the run has just removed one that it no longer needs
            if any(int(path.name.removeprefix("checkpoint-")) >= step for path in list_checkpoints(output_dir)):
                return
        if step == 0 and output_dir.exists():
            return
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    train("retrieval", flags(data, folder / "out"), folder / "log")
    return folder / "out"


def test_a_run_leaves_a_model_its_summary_and_two_checkpoints(uninterrupted: Path) -> None:
    summary = json.loads((uninterrupted / "retrieval_summary.json").read_text())
    kept = {path.name for path in list_checkpoints(uninterrupted)}
    assert kept == {f"checkpoint-{summary['best_step']}", f"checkpoint-{MAX_STEPS}"}
    best = uninterrupted / f"checkpoint-{summary['best_step']}"
    for name in ("model.safetensors", "tokenizer.json", "modeling_tinybert.py"):
        assert (uninterrupted / name).read_bytes() == (best / name).read_bytes()
    chosen = {name: summary["rerank"][name] for name in ("rerank_depth", "rerank_weight")}
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (best, uninterrupted))
    assert after == before | chosen
    assert not list(uninterrupted.glob("unfinished-*"))


def test_a_run_leaves_held_out_rows_for_the_card(data: Path, uninterrupted: Path) -> None:
    shown = json.loads((uninterrupted / "examples.json").read_text())
    held_out = pd.read_csv(data / "validation.csv").to_dict("records")
    assert shown[0] == held_out[0] and len(shown) == 12 and all(row in held_out for row in shown)


def test_the_summary_holds_what_the_history_measured(uninterrupted: Path) -> None:
    summary = json.loads((uninterrupted / "retrieval_summary.json").read_text())
    evaluations = {entry["step"]: entry for entry in summary["history"] if "eval_nDCG@10" in entry}
    assert list(evaluations) == [0, *range(SAVE_STEPS, MAX_STEPS, SAVE_STEPS), MAX_STEPS]
    best = max(evaluations, key=lambda step: evaluations[step]["eval_nDCG@10"])
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
        (process,) = start("retrieval", arguments, tmp_path / "log")
        wait_for_checkpoint(output_dir, step=rng.randrange(0, MAX_STEPS - SAVE_STEPS))
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        resumed += bool(list_checkpoints(output_dir))
        train("retrieval", arguments, tmp_path / "log")
        assert weights(output_dir) == weights(uninterrupted), f"moment {moment}"
        shutil.rmtree(output_dir)
    assert killed >= 5, "this test would be vacuous: the runs ended before they were killed"
    assert resumed >= 5, "this test would be vacuous: no run had a checkpoint to resume from"


def die_in_the_second_save(arguments: list[str], log: Path) -> None:
    """In the child."""
    save_tokenizer = trainer.save_tokenizer

    def save_or_die(tokenizer: Any, folder: Path) -> None:
        if f"checkpoint-{2 * SAVE_STEPS}" in str(folder):
            os.kill(os.getpid(), signal.SIGKILL)
        save_tokenizer(tokenizer, folder)

    trainer.save_tokenizer = save_or_die
    run_command(["train", "retrieval", *arguments], log, {})


def test_a_checkpoint_whose_writing_was_killed_is_not_picked_up(
    data: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    output_dir = tmp_path / "out"
    process = context.Process(target=die_in_the_second_save, args=(flags(data, output_dir), tmp_path / "log"))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert list(output_dir.glob("unfinished-*")), "this test would be vacuous: the save was not interrupted"
    assert list_checkpoints(output_dir)[-1].name == f"checkpoint-{SAVE_STEPS}"
    train("retrieval", flags(data, output_dir), tmp_path / "log")
    assert weights(output_dir) == weights(uninterrupted)
    assert not list(output_dir.glob("unfinished-*"))


def test_dropout_is_part_of_what_is_resumed(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """Guards the tests above: with another seed or without dropout the bytes differ."""
    for name, more in {"seed": ["--seed", "1"], "dropout": []}.items():
        arguments = flags(data, tmp_path / name, *more)
        if name == "dropout":
            arguments[arguments.index(TINY)] = f"{TINY},{NO_DROPOUT}"
        train("retrieval", arguments, tmp_path / "log")
        assert weights(tmp_path / name) != weights(uninterrupted)


def test_mined_negatives_are_part_of_what_is_resumed(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    arguments = flags(data, tmp_path / "killed", "--mined_negatives", "1")
    train("retrieval", flags(data, tmp_path / "whole", "--mined_negatives", "1"), tmp_path / "log")
    (process,) = start("retrieval", arguments, tmp_path / "log")
    wait_for_checkpoint(tmp_path / "killed", step=21)  # in the middle of an epoch
    process.kill()
    process.join()
    train("retrieval", arguments, tmp_path / "log")
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert weights(tmp_path / "whole") != weights(uninterrupted)


def test_two_processes_killed_and_resumed_end_with_the_same_bytes(data: Path, tmp_path: Path) -> None:
    train("retrieval", flags(data, tmp_path / "whole"), tmp_path / "log", num_processes=2)
    arguments = flags(data, tmp_path / "killed")
    processes = start("retrieval", arguments, tmp_path / "log", num_processes=2)
    wait_for_checkpoint(tmp_path / "killed")
    for process in processes:
        process.kill()
        process.join()
    assert not (tmp_path / "killed" / "retrieval_summary.json").exists(), "this test would be vacuous"
    train("retrieval", arguments, tmp_path / "log", num_processes=2)
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def test_two_processes_train_what_one_trains_with_the_joint_batch(data: Path, tmp_path: Path) -> None:
    """Each step's loss depends on all the gradients before it; the weights themselves are no measure, since Adam blows
    the rounding of gradients near zero up to full steps."""
    losses = {}
    for num_processes, batch_size in ((1, "16"), (2, "8")):
        arguments = flags(data, tmp_path / str(num_processes), "--max_steps", "8", "--logging_steps", "1")
        arguments[arguments.index(TINY)] = f"{TINY},{NO_DROPOUT}"
        arguments[arguments.index("--per_device_train_batch_size") + 1] = batch_size
        train("retrieval", arguments, tmp_path / "log", num_processes)
        summary = json.loads((tmp_path / str(num_processes) / "retrieval_summary.json").read_text())
        losses[num_processes] = [entry["loss"] for entry in summary["history"] if "loss" in entry]
    assert losses[2] == pytest.approx(losses[1], rel=1e-4)
    assert losses[1][-1] < 0.99 * losses[1][0], "this test would be vacuous: nothing was learned"


@pytest.mark.parametrize("num_processes", ["1", "2"])
def test_sigterm_to_accelerate_launch_saves_and_leaves(data: Path, tmp_path: Path, num_processes: str) -> None:
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
    (process,) = start("retrieval", flags(data, uninterrupted, *more), tmp_path / "log")
    process.join()
    assert process.exitcode == 1
    assert message in (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert weights(uninterrupted) == before


def test_a_folder_with_a_run_is_not_overwritten(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    arguments = [flag for flag in flags(data, uninterrupted) if flag not in ("--resume_from_checkpoint", "auto")]
    (process,) = start("retrieval", arguments, tmp_path / "log")
    process.join()
    assert process.exitcode == 1
    assert "holds a run already. Pass --resume_from_checkpoint auto" in (tmp_path / "log").read_text()


def test_a_finished_run_resumed_changes_nothing(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in uninterrupted.rglob("*.safetensors")}
    train("retrieval", flags(data, uninterrupted), tmp_path / "log")
    assert {path: path.read_bytes() for path in uninterrupted.rglob("*.safetensors")} == before


def test_a_killed_run_frees_its_folder(data: Path, tmp_path: Path) -> None:
    arguments = flags(data, tmp_path / "out", "--max_steps", "100000")
    (process,) = start("retrieval", arguments, tmp_path / "log")
    wait_for_checkpoint(tmp_path / "out")
    process.kill()
    process.join()
    arguments = flags(data, tmp_path / "out")
    (process,) = start("retrieval", arguments, tmp_path / "log")
    process.join()
    assert "max_steps was 100000, now 40" in (tmp_path / "log").read_text()  # it came past the lock


# ---- What a run tells ----


def test_the_log_has_the_plan_the_result_and_what_to_do_next(uninterrupted: Path) -> None:
    log = (uninterrupted.parent / "log").read_text()
    messages = [line.partition(" ")[2] for line in log.splitlines()]
    plan = "Training on 100 pairs: 40 steps of 8 pairs, 3.33 passes over them. Measured on 40 other pairs."
    assert messages.index(plan) < min(i for i, text in enumerate(messages) if text.startswith("step 0: "))
    summary = json.loads((uninterrupted / "retrieval_summary.json").read_text())
    rows = {
        name: [f"{system[name]:.3f}" for system in (summary["start"], summary["results"])]
        for name in ("loss", "nDCG@10")
    }
    rows["nDCG@10"].append(f"{summary['baselines']['BM25']['nDCG@10']:.3f}")
    lines = log.splitlines()
    rows["nDCG@10"].insert(2, f"{summary['rerank']['results']['nDCG@10']:.3f}")
    heading = next(i for i, line in enumerate(lines) if line.split() == ["before", "after", "ranked", "anew", "BM25"])
    table = {line.split()[0]: line.split()[1:] for line in lines[heading + 1 : heading + 4]}
    assert rows.items() <= table.items()
    assert f"The model of step {summary['best_step']} is in {uninterrupted}." in messages
    assert not [line for line in lines if "index from" in line], "nothing of other libraries"
    assert f"tinybert search --model {uninterrupted} " in lines[-3]
    assert f"tinybert publish --model {uninterrupted} " in lines[-2]
    assert f"tinybert index build --index my.index --model {uninterrupted} " in lines[-1]


def test_a_log_has_no_moving_bars(uninterrupted: Path) -> None:
    """`forkserver` gives the run a file as its standard error."""
    log = (uninterrupted.parent / "log").read_bytes().decode()  # `read_text` would make lines of them
    assert "\r" not in log and "it/s" not in log and "\x1b" not in log, log


def test_before_after_and_bm25_are_measured_on_the_same_pairs(uninterrupted: Path) -> None:
    summary = json.loads((uninterrupted / "retrieval_summary.json").read_text())
    first = summary["history"][0]
    assert first["step"] == 0
    assert summary["start"] == {name[5:]: value for name, value in first.items() if name != "step"}
    assert set(summary["baselines"]) == {"BM25"}
    assert set(summary["baselines"]["BM25"]) <= set(summary["results"])
    assert summary["results"]["nDCG@10"] > summary["start"]["nDCG@10"]


# ---- In this process ----


def settings(folder: Path, output_dir: Path, /, **more: Any) -> RetrievalArguments:
    """A run of six steps."""
    values = {
        "data": str(folder / "train.csv"),
        "eval_data": str(folder / "validation.csv"),
        "config_overrides": TINY,
        "output_dir": str(output_dir),
        "per_device_train_batch_size": 8,
        "max_steps": 6,
        "save_steps": 2,
        "logging_steps": 1,
        "learning_rate": 0.002,
        "report_to": "none",
        "resume_from_checkpoint": "auto",
    }
    return RetrievalArguments(**values | more)


def last_weights(result: TrainingResult) -> bytes:
    return (list_checkpoints(result.folder)[-1] / "model.safetensors").read_bytes()


def stop(monkeypatch: pytest.MonkeyPatch, arguments: RetrievalArguments, step: int) -> None:
    """Train until a SIGTERM in this step."""
    prepare = RetrievalStage.prepare

    def prepare_or_terminate(stage: RetrievalStage, model: Any, now: int) -> None:
        if now == step:
            signal.raise_signal(signal.SIGTERM)
        prepare(stage, model, now)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(RetrievalStage, "prepare", prepare_or_terminate)
        train_retrieval(arguments)
    assert left.value.code == 128 + signal.SIGTERM
    assert list_checkpoints(Path(arguments.output_dir))[-1].name == f"checkpoint-{step + 1}"


def history(result: TrainingResult) -> list[dict[str, float]]:
    """Without what depends on the machine."""
    return [
        {name: value for name, value in entry.items() if name != "texts_per_second"}
        for entry in result.summary["history"]
    ]


@pytest.mark.parametrize("kind", get_args(Schedule))
def test_each_schedule_trains_and_goes_on_after_a_stop(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Schedule
) -> None:
    more = {"lr_scheduler_type": kind, "warmup_ratio": 0.4, "save_steps": 6}
    whole = train_retrieval(settings(data, tmp_path / "whole", **more))
    stopped = settings(data, tmp_path / "stopped", **more)
    stop(monkeypatch, stopped, step=2)
    resumed = train_retrieval(stopped)
    assert last_weights(resumed) == last_weights(whole)
    assert history(resumed) == history(whole)
    rates = [entry["learning_rate"] for entry in whole.summary["history"] if "learning_rate" in entry]
    assert len(rates) == 6 and max(rates) == pytest.approx(0.002)
    assert (len(set(rates)) == 1) is (kind == "constant"), "this test would be vacuous: nothing to go on with"


def test_a_stop_and_a_schedule_leave_nothing_behind_in_the_process(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    stop(monkeypatch, settings(data, tmp_path / "out"), step=0)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def scripted(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    """Have the evaluations measure these values, one after the other, the first of them before training."""
    remaining = iter(values)
    monkeypatch.setattr(RetrievalStage, "evaluate", lambda stage, model: {"nDCG@10": next(remaining)})


@pytest.mark.parametrize(
    ("patience", "values", "last", "best"),
    [
        (1, [0.9, 0.3, 0.2], 2, 0),  # what training starts from is a candidate too
        (2, [0.1, 0.3, 0.2, 0.3], 6, 2),  # as good is not better
        (2, [0.1, 0.3, 0.2, 0.4, 0.4, 0.1], 10, 6),  # a better one starts the count anew
        (2, [0.1, 0.3, 0.2, 0.4, 0.3, 0.5, 0.2], 12, 10),  # not in the last step
        (None, [0.1, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], 12, 2),
    ],
)
def test_a_run_stops_after_so_many_evaluations_without_a_better_one(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    patience: int | None,
    values: list[float],
    last: int,
    best: int,
) -> None:
    scripted(monkeypatch, values)
    with caplog.at_level("INFO", "tinybert_hf.training"):
        result = train_retrieval(settings(data, tmp_path / "out", max_steps=12, early_stopping_patience=patience))
    assert (result.summary["steps"], result.summary["best_step"]) == (last, best)
    assert [path.name for path in list_checkpoints(result.folder)] == [
        f"checkpoint-{step}" for step in sorted({best, last})
    ]
    assert result.summary["results"] == {"nDCG@10": max(values)}
    assert result.summary["start"] == {"nDCG@10": values[0]}
    best_model = (tmp_path / "out" / f"checkpoint-{best}" / "model.safetensors").read_bytes()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == best_model
    worse = "Training did not make the model better: the weights that it started from are kept." in caplog.messages
    assert worse is (best == 0)
    told = f"Stopped at step {last}: nothing better since step {best}." in caplog.messages
    assert told is (last < 12)


def test_a_run_that_stops_early_goes_on_to_the_same_end(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So small a rate changes no ranking: the start stays the best.
    more = {"max_steps": 40, "learning_rate": 1e-9, "early_stopping_patience": 2}
    whole = train_retrieval(settings(data, tmp_path / "whole", **more))
    assert (whole.summary["steps"], whole.summary["best_step"]) == (4, 0)
    stopped = settings(data, tmp_path / "stopped", **more)
    stop(monkeypatch, stopped, step=2)  # after one evaluation without a better result
    resumed = train_retrieval(stopped)
    assert last_weights(resumed) == last_weights(whole)
    assert history(resumed) == history(whole)
    again = train_retrieval(stopped)
    assert (again.summary["steps"], again.summary["best_step"]) == (4, 0), "a run that is over stays so"
    assert last_weights(again) == last_weights(whole)


def test_rows_in_memory_train_the_weights_of_a_file(data: Path, tmp_path: Path) -> None:
    """The first in a process of its own, the others one after the other in this one."""
    arguments = ["--data", str(data / "train.csv"), "--eval_size", "32", "--config_overrides", TINY]
    arguments += ["--per_device_train_batch_size", "8", "--max_steps", "6", "--save_steps", "2"]
    arguments += ["--logging_steps", "1", "--learning_rate", "0.002", "--report_to", "none"]
    train("retrieval", [*arguments, "--output_dir", str(tmp_path / "file")], tmp_path / "log")
    expected = (tmp_path / "file" / "checkpoint-6" / "model.safetensors").read_bytes()
    rows_left = json.loads((tmp_path / "file" / "retrieval_summary.json").read_text())["data"]["train_rows"]
    frame = pd.read_csv(data / "train.csv")
    for name, rows in {
        "DataFrame": frame,
        "list": frame.to_dict("records"),
        "Dataset": datasets.Dataset.from_pandas(frame),
    }.items():
        result = train_retrieval(
            settings(data, tmp_path / name, data=rows, eval_data=None, eval_size=32, resume_from_checkpoint=None)
        )
        assert last_weights(result) == expected, name
        assert result.folder == tmp_path / name
        summary = json.loads((tmp_path / name / "retrieval_summary.json").read_text())
        assert summary == json.loads(json.dumps(result.summary))
        assert summary["data"]["data"] == summary["arguments"]["data"] == f"{name} of 100 rows"
        assert (summary["data"]["train_rows"], summary["data"]["eval_rows"]) == (rows_left, 32)


def test_rows_in_memory_may_be_measured_on_and_gone_on_with(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {
        "data": pd.read_csv(data / "train.csv"),
        "eval_data": pd.read_csv(data / "validation.csv").to_dict("records"),
    }
    whole = train_retrieval(settings(data, tmp_path / "file"))
    stopped = settings(data, tmp_path / "memory", **rows)
    stop(monkeypatch, stopped, step=2)
    resumed = train_retrieval(stopped)
    assert last_weights(resumed) == last_weights(whole)
    assert history(resumed) == history(whole)
    assert resumed.summary["arguments"]["eval_data"] == "list of 40 rows"


def test_folders_may_be_given_as_paths(data: Path, tmp_path: Path) -> None:
    result = train_retrieval(settings(data, tmp_path / "out", max_steps=1))
    more = {"model": result.folder, "data": data / "train.csv", "output_dir": tmp_path / "next"}
    following = train_retrieval(settings(data, tmp_path, max_steps=1, config_overrides=None, **more))
    assert following.summary["arguments"]["model"] == str(result.folder)
    written = json.loads((tmp_path / "next" / "retrieval_summary.json").read_text())
    assert written["arguments"]["data"] == str(data / "train.csv")


def test_a_summary_names_folders_so_that_nobody_takes_them_for_repositories(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    train_retrieval(settings(data, Path("outputs/start"), max_steps=1))
    more = {"model": "outputs/start", "config_overrides": None}
    train_retrieval(settings(data, Path("outputs/next"), max_steps=1, **more))
    folder = tmp_path / "outputs" / "next"
    written = json.loads((folder / "retrieval_summary.json").read_text())["arguments"]
    assert (written["model"], written["output_dir"]) == (str(tmp_path / "outputs" / "start"), str(folder))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert Origin().complete(folder) == Origin() and "could not be read" not in caplog.text  # the Hub was not asked


def test_summaries_of_the_working_directory_are_none_of_a_new_models(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other_summary.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    train_retrieval(settings(data, tmp_path / "out", max_steps=1))
    assert [path.name for path in (tmp_path / "out").glob("*_summary.json")] == ["retrieval_summary.json"]


def test_a_checkpoint_holds_the_schedule_and_what_the_stage_keeps(data: Path, tmp_path: Path) -> None:
    result = train_retrieval(settings(data, tmp_path / "out", max_steps=2, mined_negatives=2))
    checkpoint = list_checkpoints(result.folder)[-1]
    assert not list(checkpoint.glob("custom_checkpoint*"))
    state = json.loads((checkpoint / "training_state.json").read_text())
    assert state["step"] == state["schedule"]["last_epoch"] == 2
    assert state["schedule"]["_last_lr"] == [0.0] * 3  # linear, at its end
    kept = load_file(checkpoint / "stage.safetensors")
    assert kept["mined_rows"].shape == (100, 2) and kept["mined_epoch"].item() == 0
    for name in ("stage.safetensors", "training_state.json", "optimizer.bin", "random_states_0.pkl"):
        assert (checkpoint / name).is_file()
        assert not (result.folder / name).exists(), "what is published is a model folder"
    assert (kept["mined_rows"] != torch.arange(100)[:, None]).all(), "no row's own answer"


def test_trackers_get_numbers_as_numbers_under_train_and_eval(data: Path, tmp_path: Path) -> None:
    result = train_retrieval(settings(data, tmp_path / "out", report_to="tensorboard", negative_columns=None, seed=3))
    (events,) = [path for path in (tmp_path / "out" / "runs").rglob("events.out.*") if path.parent.name == "retrieval"]
    reader = EventAccumulator(str(events))
    reader.Reload()
    tags = set(reader.Tags()["scalars"])
    assert tags == {
        *("train/loss", "train/learning_rate", "train/texts_per_second"),
        *("eval/loss", "eval/nDCG@10", "eval/RR@10"),
    }
    told = {event.step: event.value for event in reader.Scalars("train/loss")}
    kept = {entry["step"]: entry["loss"] for entry in result.summary["history"] if "loss" in entry}
    assert told == pytest.approx(kept, rel=1e-5) and list(told) == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in reader.Scalars("eval/nDCG@10")] == [0, 2, 4, 6]
    (file,) = (tmp_path / "out" / "runs").rglob("hparams.yml")
    settings_told = yaml.safe_load(file.read_text())
    assert (settings_told["learning_rate"], settings_told["seed"]) == (0.002, 3)
    assert settings_told["negative_columns"] == "None", "what is no number is text"


def test_a_loss_that_is_no_number_ends_the_run_and_spares_the_checkpoints(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = settings(data, tmp_path / "out")
    backward = RetrievalStage.backward

    def broken(stage: RetrievalStage, model: Any, batch: Any) -> torch.Tensor:
        loss = backward(stage, model, batch)
        return loss * torch.nan if (tmp_path / "out" / "checkpoint-2").exists() else loss

    with monkeypatch.context() as patch:
        patch.setattr(RetrievalStage, "backward", broken)
        with pytest.raises(FloatingPointError, match=r"not a number at step 3\. Lower --learning_rate"):
            train_retrieval(arguments)
    assert [path.name for path in list_checkpoints(tmp_path / "out")] == ["checkpoint-2"]
    resumed = train_retrieval(arguments)
    assert last_weights(resumed) == last_weights(train_retrieval(settings(data, tmp_path / "whole")))


# ---- A checkpoint is whole, or is not used; nothing in it is run ----


class Evil:
    """A pickle of it opens a file where it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return open, (str(self.canary), "w")


def test_a_pickle_in_any_file_of_a_checkpoint_runs_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stranger has written the manifest anew, so that it is no help."""
    run = settings(data, tmp_path / "out", save_steps=6)
    stop(monkeypatch, run, step=2)
    first, whole = list_checkpoints(tmp_path / "out")
    shutil.rmtree(first)  # else the run would go on from there
    shutil.copytree(whole, tmp_path / "whole")
    canary, refused = tmp_path / "canary", 0
    names = [path.name for path in whole.iterdir() if path.suffix != ".py"]
    for name in [*names, "custom_checkpoint_0.pkl", "scheduler.bin"]:
        for write in (
            lambda path: path.write_bytes(pickle.dumps(Evil(canary))),
            lambda path: torch.save(Evil(canary), path),
        ):
            write(whole / name)
            if name != "manifest.json":
                write_manifest(whole)
            try:
                train_retrieval(run)
            except InputError as error:
                refused += 1
                assert str(whole) in str(error)
            assert not canary.exists(), name
            shutil.rmtree(tmp_path / "out")
            shutil.copytree(tmp_path / "whole", whole)
    assert refused >= 2 * 6, "this test would be vacuous: the files were not read"
    pickle.loads(pickle.dumps(Evil(canary))).close()
    assert canary.exists(), "this test would be vacuous: the pickle is harmless"


def test_a_run_with_a_damaged_checkpoint_goes_on_from_the_one_before(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What was damaged is replaced when the run comes by again."""
    whole = train_retrieval(settings(data, tmp_path / "whole"))
    run = settings(data, tmp_path / "out")
    stop(monkeypatch, run, step=4)
    before, last = list_checkpoints(tmp_path / "out")[-2:]
    (last / "random_states_0.pkl").unlink()
    (tmp_path / "out" / "unfinished-notes").write_text("of somebody")
    (tmp_path / "out" / "checkpoint-99").mkdir()
    with caplog.at_level("INFO", "tinybert_hf"):
        resumed = train_retrieval(run)
    assert any(f"{last} is not whole: random_states_0.pkl is missing" in message for message in caplog.messages)
    assert any(f"Resumed {before}" in message for message in caplog.messages)
    assert last_weights(resumed) == last_weights(whole)
    assert (tmp_path / "out" / "unfinished-notes").read_text() == "of somebody"
    assert all(find_damage(path) is None for path in list_checkpoints(resumed.folder))


def test_random_states_that_do_not_load_end_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate would go on with others, and dropout draw other masks."""
    run = settings(data, tmp_path / "out", save_steps=6)
    stop(monkeypatch, run, step=2)
    checkpoint = list_checkpoints(tmp_path / "out")[-1]
    states = torch.load(checkpoint / "random_states_0.pkl", weights_only=False)
    torch.save(states | {"torch_manual_seed": torch.zeros(3, dtype=torch.uint8)}, checkpoint / "random_states_0.pkl")
    write_manifest(checkpoint)
    with pytest.raises(UnreadableError, match=r"cannot be resumed: its random states do not fit the devices"):
        train_retrieval(run)


def test_a_best_checkpoint_that_is_damaged_is_not_made_the_model(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [0.1, 0.9, 0.2, 0.2, 0.2])
    run = settings(data, tmp_path / "out")
    stop(monkeypatch, run, step=4)
    best, _last = list_checkpoints(tmp_path / "out")
    assert best.name == "checkpoint-2"
    (best / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(UnreadableError, match="checkpoint-2, the best checkpoint so far, is not whole"):
        train_retrieval(run)


@pytest.mark.parametrize("values", [[0.1, 0.9, 0.2, 0.2, 0.2], [0.9, 0.1, 0.2, 0.2, 0.2]])  # or the start is the best
def test_a_run_that_goes_on_in_another_folder_takes_the_best_checkpoint_along(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: list[float]
) -> None:
    scripted(monkeypatch, values)
    stop(monkeypatch, settings(data, tmp_path / "out"), step=4)
    best, last = list_checkpoints(tmp_path / "out")
    result = train_retrieval(settings(data, tmp_path / "other", resume_from_checkpoint=str(last)))
    assert (result.folder / "model.safetensors").read_bytes() == (best / "model.safetensors").read_bytes()


def test_an_older_checkpoint_goes_only_after_the_new_one_is_on_the_disk(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls are watched: nothing less than a power cut would show their effect."""
    calls: list[str] = []
    fsync, rename, measures = os.fsync, os.rename, iter([0.1, 0.2, 0.3])

    def flushed(descriptor: int) -> None:
        calls.append(f"flush {Path(os.readlink(f'/proc/self/fd/{descriptor}')).relative_to(tmp_path)}")
        fsync(descriptor)

    def renamed(old: Any, new: Any) -> None:
        calls.append(f"rename {Path(old).name} {Path(new).name}")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(RetrievalStage, "evaluate", lambda stage, model: {"nDCG@10": next(measures)})
    train_retrieval(settings(data, tmp_path / "out", max_steps=4))
    counted = calls.index("rename unfinished-checkpoint-4 checkpoint-4")
    before = {call.removeprefix("flush out/unfinished-checkpoint-4") for call in calls[:counted]}
    files = {f"/{path.name}" for path in (tmp_path / "out" / "checkpoint-4").iterdir()}
    assert files | {""} <= before
    assert calls[counted + 1] == "flush out"
    assert calls.index("rename checkpoint-2 unfinished-checkpoint-2") > counted + 1


@pytest.mark.parametrize(("dropout", "attention"), [(0.0, "sdpa"), (0.1, "eager")])
def test_attention_is_written_out_where_no_fused_one_trains_faster(
    dropout: float, attention: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    used: set[str] = set()
    backward = RetrievalStage.backward

    def spy(stage: RetrievalStage, *arguments: Any) -> Any:
        used.add(stage.model.config._attn_implementation)
        return backward(stage, *arguments)

    monkeypatch.setattr(RetrievalStage, "backward", spy)
    train_retrieval(
        RetrievalArguments(
            data=str(data / "train.csv"),
            config_overrides=f"{TINY},attention_probs_dropout_prob={dropout}",
            output_dir=str(tmp_path / "out"),
            max_steps=1,
            per_device_train_batch_size=8,
            report_to="none",
        )
    )
    assert used == {attention}
