"""What pytest needs before any test. It imports no torch: of several processes, the first one runs no tests."""

import re
from pathlib import Path

import pytest

TEXTS = [
    "a fast compiler for small machines",
    "play music from the command line",
    "read and write compressed archives",
    "library to parse command line arguments",
    "manage photos and draw pictures",
    "send and receive electronic mail",
    "edit text in a terminal window",
    "a good movie with bad music",
]


def pytest_configure(config: pytest.Config) -> None:
    """Load the fixtures where tests are run."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        for name in ("shared_fixtures", "publishing"):
            config.pluginmanager.import_plugin(name)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import files of which every test has a mark that is left out."""
    left_out = re.findall(r"not (\w+)", config.getoption("markexpr"))
    text = collection_path.read_text(encoding="utf-8") if left_out and collection_path.suffix == ".py" else ""
    return any(f"\npytestmark = pytest.mark.{mark}" in text for mark in left_out) or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no process has one of them left when the others are done."""
    slow = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("interop")}
    items.sort(key=lambda item: item.path not in slow)
