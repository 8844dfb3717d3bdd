"""Folders that must not be lost: written aside, flushed to the disk before they count, and known by their hashes."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from .errors import InputError, UnreadableError

MANIFEST = "manifest.json"  # file -> SHA-256
LOCK = ".lock"
FULL = 2**24  # free bytes of a disk on which a failed write is the disk's fault


def sha256(path: str | Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"{path} is no valid JSON: {error}") from error


def write_manifest(folder: Path) -> None:
    """Write down what the files of a folder are, so that `find_damage` can tell whether they still are it."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name != MANIFEST]
    write_json(folder / MANIFEST, {path.name: sha256(path) for path in files})


def find_damage(folder: Path) -> str | None:
    """What keeps a folder from being the one that its manifest describes; None where it is whole."""
    try:
        expected = read_json(folder / MANIFEST)
        for name, digest in expected.items():
            if sha256(folder / name) != digest:
                return f"{name} is not what was written"
    except (OSError, ValueError, AttributeError, TypeError) as error:  # missing, no JSON, not a mapping of names
        reason = f"{Path(error.filename).name} is missing" if isinstance(error, FileNotFoundError) else str(error)
        return f"{reason} (it was never complete, or is of an earlier version)" if MANIFEST in reason else reason
    return None


def flush(path: Path) -> None:
    """Have the system put a file, or a folder's list of files, on the disk: after a power cut it is there."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_in_place(folder: Path, target: Path) -> None:
    """Rename a complete folder to the name under which it counts, with all of it on the disk before and after."""
    for path in sorted(folder.rglob("*"), reverse=True):  # files before the folder that lists them
        flush(path)
    flush(folder)
    folder.rename(target)
    flush(target.parent)


@contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A folder to build in, removed afterwards; with it those that killed processes left, whose locks the system freed."""
    with TemporaryDirectory(dir=parent, prefix=prefix) as scratch, FileLock(Path(scratch, LOCK)):
        yield Path(scratch)
        remove_folders(Path(scratch))
    for left in parent.glob(f"{prefix}*/{LOCK}"):
        with suppress(Timeout, OSError), FileLock(left, timeout=0):
            remove_folders(left.parent)
            shutil.rmtree(left.parent)


def remove_folders(scratch: Path) -> None:
    """Remove all but the lock, by which the next process finds what is left if this one is killed now."""
    for path in scratch.iterdir():
        if path.is_dir():
            shutil.rmtree(path)


@contextmanager
def explained(folder: Path, remedy: str) -> Iterator[None]:
    """Say in an UnreadableError that something could not be written, and where that is why, that the disk is full."""
    try:
        yield
    except InputError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        full = shutil.disk_usage(folder).free < FULL or "No space left" in str(error)
        reason = "the disk is full" if full else f"{type(error).__name__}: {error}"
        raise UnreadableError(f"{folder} could not be written: {reason}. {remedy}") from error
