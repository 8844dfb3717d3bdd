"""Libraries that only an extra of the package installs."""

import importlib
from types import ModuleType

from .errors import MissingExtraError


def import_extra(module: str, extra: str = "train", purpose: str = "measuring") -> ModuleType:
    """Import what loading and searching do not need, or raise MissingExtraError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"{error}; {purpose} needs it: pip install 'tinybert_hf[{extra}]'") from error
