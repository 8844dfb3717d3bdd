"""Folders that must not be lost: flushed before they count, known by their hashes, swept up after a kill."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from safetensors import SafetensorError

from tinybert_hf import files
from tinybert_hf.errors import InputError, UnreadableError
from tinybert_hf.files import (
    explained,
    find_damage,
    put_in_place,
    read_json,
    scratch_folder,
    write_json,
    write_manifest,
)


def test_json_is_readable_and_exact(tmp_path: Path) -> None:
    content = {"text": "Ü ☃", "numbers": [0.1, 1e-17, 2**60]}
    write_json(tmp_path / "a.json", content)
    written = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(written) == content
    assert "Ü ☃" in written and written.endswith("}\n")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe{\x00}\x00", b"[" * 100_000])
def test_json_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UnreadableError, match=r"a\.json is no valid JSON: "):
        read_json(tmp_path / "a.json")


def test_a_whole_folder_has_no_damage_and_more_files_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    write_manifest(tmp_path)
    assert find_damage(tmp_path) is None
    (tmp_path / "b").write_bytes(b"somebody else's")
    assert find_damage(tmp_path) is None
    (tmp_path / "a").write_bytes(b"Content")
    assert find_damage(tmp_path) == "a is not what was written"


@pytest.mark.parametrize(
    "manifest", ["[]", "7", '{"a": 7}', '{"a', '{"/etc": ""}', '{"missing": ""}', "\udcff", "[" * 100_000]
)
def test_a_manifest_that_is_none_is_damage(tmp_path: Path, manifest: str) -> None:
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "manifest.json").write_bytes(manifest.encode(errors="surrogateescape"))
    assert find_damage(tmp_path)


def test_all_of_a_folder_is_on_the_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls are watched: nothing less than a power cut would show their effect."""
    (tmp_path / "new" / "1_Pooling").mkdir(parents=True)
    (tmp_path / "new" / "a").write_bytes(b"")
    (tmp_path / "new" / "1_Pooling" / "b").write_bytes(b"")
    calls: list[str] = []
    fsync, rename = os.fsync, os.rename
    by_inode = {path.stat().st_ino: path.name for path in [tmp_path, *tmp_path.rglob("*")]}

    def watched(descriptor: int) -> None:
        calls.append(by_inode[os.fstat(descriptor).st_ino])
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr(os, "rename", lambda *paths: (calls.append("rename"), rename(*paths)))
    put_in_place(tmp_path / "new", tmp_path / "target")
    assert calls[-3:] == ["new", "rename", tmp_path.name]
    assert sorted(calls[:-3]) == ["1_Pooling", "a", "b"] and calls.index("b") < calls.index("1_Pooling")
    assert (tmp_path / "target" / "1_Pooling" / "b").is_file()


def hold(parent: Path, ready: Path) -> None:
    with scratch_folder(parent, "unfinished-m-") as scratch:
        (scratch / "model.safetensors").write_bytes(b"large")
        ready.write_text("")
        signal.pause()


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_uses_is_not(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    parent.mkdir()
    (parent / "unfinished-m-notes").mkdir()  # somebody else's
    context = multiprocessing.get_context("fork")
    processes = []
    for name in ("killed", "living"):
        process = context.Process(target=hold, args=(parent, tmp_path / name))
        process.start()
        while not (tmp_path / name).exists():
            assert process.is_alive()
        processes.append(process)
    killed, living = processes
    killed.kill()
    killed.join()
    assert len(list(parent.glob("*/model.safetensors"))) == 2
    with scratch_folder(parent, "unfinished-m-"):
        assert len(list(parent.iterdir())) == 4
    assert len(list(parent.glob("*/model.safetensors"))) == 1
    assert (parent / "unfinished-m-notes").is_dir()
    living.kill()
    living.join()


@pytest.mark.parametrize("error", [OSError(28, "No space left"), RuntimeError("unexpected pos"), SafetensorError("x")])
def test_a_full_disk_is_said_whatever_the_library_says(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "FULL", 2**62)
    with (
        pytest.raises(UnreadableError, match=r"could not be written: the disk is full\. Make room\."),
        explained(tmp_path, "Make room."),
    ):
        raise error


def test_what_else_keeps_files_from_being_written_is_said_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "FULL", 0)
    with (
        pytest.raises(UnreadableError, match=r"could not be written: RuntimeError: unexpected pos\. Make room"),
        explained(tmp_path, "Make room."),
    ):
        raise RuntimeError("unexpected pos")
    with pytest.raises(InputError, match=r"^as it is$"), explained(tmp_path, ""):
        raise InputError("as it is")
    with pytest.raises(ZeroDivisionError), explained(tmp_path, ""):
        raise ZeroDivisionError
