"""A library that is not installed is named, with the command that installs it."""

import json

import pytest

from tinybert_hf.errors import InputError, MissingExtraError, import_extra


def test_a_missing_extra_is_named_with_its_command() -> None:
    with pytest.raises(
        MissingExtraError, match=r"no_such_library.*; searching needs it: pip install 'tinybert_hf\[index\]'"
    ) as caught:
        import_extra("no_such_library", "index", "searching")
    assert isinstance(caught.value, ModuleNotFoundError) and isinstance(caught.value, InputError)
    assert import_extra("json") is json
