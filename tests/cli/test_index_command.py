"""What the index commands do with their flags; the corpora themselves are in tests/index.

python -m pytest tests/cli/test_index_command.py -q
"""

from typing import Any

import pytest
from command_line import tinybert

from tinybert_hf import index as module

SEARCH = ["index", "search", "--index", "i", "--query", "-v flag"]


class Index:
    """Stands in for a SearchIndex; remembers how it was opened and searched."""

    def __init__(self, *opened: Any) -> None:
        self.opened, self.identity = opened, "a model"
        made.append(self)

    def search(self, *searched: Any) -> list[dict[str, Any]]:
        self.searched = searched
        return [{"id": "a", "score": 0.5, "text": "ä", "year": 2020}]


made: list[Index] = []


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SearchIndex", Index)
    made.clear()


def test_a_search_passes_every_flag_on() -> None:
    flags = ["--token", "t", "--top_k", "7", "--mode", "hybrid", "--filter", '{"year": {">=": 2020}}']
    assert tinybert(*SEARCH, *flags) == (0, "  1. 0.500  a: ä\n", "")
    assert made[0].opened == ("i", None, None, "t", None)
    assert made[0].searched == ("-v flag", 7, {"year": {">=": 2020}}, "hybrid", None, None, False, None)


def test_json_has_the_records_as_they_are() -> None:
    done = tinybert(*SEARCH, "--json")
    assert done == (0, '[{"id": "a", "score": 0.5, "text": "ä", "year": 2020}]\n', "")
    assert made[0].searched == ("-v flag", 3, None, "dense", None, None, False, None)


@pytest.mark.parametrize("value", ["[]", '"section"', "3", "null"])
def test_a_filter_that_is_no_object_is_refused_before_the_index_is_opened(value: str) -> None:
    done = tinybert(*SEARCH, "--filter", value)
    assert done == (1, "", f'error: --filter must be a JSON object, such as {{"section": ["vcs"]}}, got {value}.\n')
    assert not made


def test_a_filter_that_is_no_json_is_refused() -> None:
    done = tinybert(*SEARCH, "--filter", "{'section': 'vcs'}")
    assert done.status == 1
    assert done.err.startswith("error: --filter is no JSON: {'section': 'vcs'} (Expecting property name")


def test_a_sync_opens_the_index_and_passes_every_folder_on(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def keep_in_step(*arguments: Any, **options: Any) -> dict[str, int]:
        given.append(arguments)
        return {"new files": 1_234, "skipped files": 0}

    monkeypatch.setattr("tinybert_hf.index.sync.sync", keep_in_step)
    done = tinybert("index", "sync", "i", "docs", "notes", "--model", "m", "--token", "t")
    assert (done.status, done.out) == (0, "    1,234 new files\n        0 skipped files\n")
    assert made[0].opened == ("i", "m", None, "t", None)
    assert given == [(made[0], ["docs", "notes"])]


def test_a_sync_without_documents_is_a_usage_error() -> None:
    done = tinybert("index", "sync", "i")
    assert done.status == 2
    assert "documents" in done.err
