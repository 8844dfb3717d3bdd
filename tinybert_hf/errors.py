"""What a user can mend. A command prints it in one line; everything else is a bug and keeps its traceback."""

import importlib
from pathlib import Path
from types import ModuleType


class InputError(ValueError):
    """Something that the user gave is wrong. The message names the value, what was expected and what to do."""


class MissingFileError(InputError, FileNotFoundError):
    """A file, a folder or a Hub repository is not there."""


class UnreadableError(InputError, OSError):
    """Something is there and cannot be read, written or reached: damaged, of another kind, or without an answer."""


class MissingExtraError(InputError, ModuleNotFoundError):
    """A library of an optional extra is not installed."""


def check_hub_id(name: str, kind: str) -> None:
    """Say at once that a name which is not like OWNER/NAME can be no Hub id, instead of after many requests."""
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        where = f"no such file or folder here (in {Path.cwd()})"
        raise MissingFileError(f"There is no {kind} {name!r}: {where}, and an id on the Hub is OWNER/NAME.")


def import_extra(module: str, extra: str = "train", purpose: str = "measuring") -> ModuleType:
    """Import what loading and searching do not need, or raise MissingExtraError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"{error}; {purpose} needs it: pip install 'tinybert_hf[{extra}]'") from error
