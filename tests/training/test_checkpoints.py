"""A run's folder: which checkpoints it holds, which one is gone on from, and who may write to it."""

from pathlib import Path

import pytest
from accelerate import Accelerator
from filelock import FileLock

from tinybert_hf import RetrievalArguments
from tinybert_hf.errors import InputError, MissingFileError, UnreadableError
from tinybert_hf.files import write_manifest
from tinybert_hf.training import checkpoints as module
from tinybert_hf.training.checkpoints import find_checkpoint, list_checkpoints, single_writer


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two complete checkpoints, one that was being written and one that was being deleted."""
    for name in (
        "checkpoint-9",
        "checkpoint-10",
        "unfinished-checkpoint-11",
        "unfinished-checkpoint-8",
        "checkpoint-x",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "training_state.json").write_text('{"step": 9}')
        (tmp_path / name / "model.safetensors").write_text(name)
        write_manifest(tmp_path / name)
    (tmp_path / "checkpoint-99").mkdir()  # empty: somebody else's, as are files
    (tmp_path / "checkpoint-100").write_text("")
    return tmp_path


def find(folder: Path, wanted: str | None) -> Path | None:
    return find_checkpoint(RetrievalArguments(output_dir=str(folder), resume_from_checkpoint=wanted))


def test_complete_checkpoints_are_listed_by_their_step(run: Path, tmp_path: Path) -> None:
    assert [path.name for path in list_checkpoints(run)] == ["checkpoint-9", "checkpoint-10"]
    assert list_checkpoints(tmp_path / "nowhere") == []


def test_auto_is_the_last_one_and_a_folder_is_itself(run: Path) -> None:
    assert find(run, "auto") == run / "checkpoint-10"
    assert find(run, str(run / "checkpoint-9")) == run / "checkpoint-9"


def test_auto_begins_where_there_is_none_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "tinybert_hf.training.checkpoints"):
        assert find(tmp_path, "auto") is None
    assert caplog.messages == [f"No checkpoint in {tmp_path} yet: starting from the beginning."]
    assert find(tmp_path, None) is None


def test_what_is_no_checkpoint_is_named_with_those_there_are(run: Path, tmp_path: Path) -> None:
    for wanted in ("nowhere", str(run / "runs")):
        with pytest.raises(
            MissingFileError, match=rf"{wanted} is no checkpoint; those in .*checkpoint-9, .*checkpoint-10\."
        ):
            find(run, wanted)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match=r"those in .*: none\. Pass one, or auto"):
        find(tmp_path / "empty", "nowhere")


def damaged(file: Path, how: str) -> None:
    content = file.read_bytes()
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(
            {"empty": b"", "cut": content[: len(content) // 2], "changed": bytes([content[0] ^ 1]) + content[1:]}[how]
        )


@pytest.mark.parametrize("how", ["missing", "empty", "cut", "changed"])
@pytest.mark.parametrize("name", ["model.safetensors", "training_state.json", "manifest.json"])
def test_auto_is_the_newest_whole_one_and_says_why(
    run: Path, name: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    damaged(run / "checkpoint-10" / name, how)
    assert find(run, "auto") == run / "checkpoint-9"
    (message,) = caplog.messages
    assert message.startswith(f"{run / 'checkpoint-10'} is not whole: ") and message.endswith("It is left alone.")
    assert name in message or name == "manifest.json"


def test_where_none_is_whole_no_run_begins(run: Path) -> None:
    for checkpoint in list_checkpoints(run):
        damaged(checkpoint / "model.safetensors", "changed")
    for wanted in ("auto", str(run / "checkpoint-9")):
        with pytest.raises(
            UnreadableError, match=r"checkpoint-9 is not whole: model.safetensors is not what was written\. Restore it"
        ):
            find(run, wanted)


def test_a_checkpoint_of_an_earlier_version_is_named_as_such(run: Path) -> None:
    (run / "checkpoint-9" / "manifest.json").unlink()
    with pytest.raises(UnreadableError, match=r"manifest.json is missing \(it was never complete, or is of an earlier"):
        find(run, str(run / "checkpoint-9"))


@pytest.mark.parametrize("left", ["checkpoint-3/model.safetensors", "retrieval_summary.json"])
def test_a_folder_with_a_run_is_not_written_to_unasked(tmp_path: Path, left: str) -> None:
    (tmp_path / left).parent.mkdir(exist_ok=True)
    (tmp_path / left).write_text("")
    with pytest.raises(InputError, match=r"holds a run already\. Pass --resume_from_checkpoint auto"):
        find(tmp_path, None)


def test_a_second_run_is_kept_out_while_the_first_one_writes(
    accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOCK_SECONDS", 0.1)
    first = FileLock(tmp_path / ".lock")
    with (
        first,
        pytest.raises(InputError, match=f"Another run is writing to {tmp_path}; wait for it, or stop it"),
        single_writer(accelerator, tmp_path),
    ):
        pass
    with single_writer(accelerator, tmp_path):
        assert not first.is_locked
        with pytest.raises(TimeoutError):
            FileLock(tmp_path / ".lock").acquire(timeout=0.1)
    with first.acquire(timeout=0):
        pass  # free again


def test_a_run_that_fails_frees_its_folder(accelerator: Accelerator, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), single_writer(accelerator, tmp_path):
        raise ZeroDivisionError
    with FileLock(tmp_path / ".lock").acquire(timeout=0):
        pass
