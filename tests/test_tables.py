"""The tables of docs/results.md are those of benchmarks/results, and nothing else in it is a result."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.tables import DOCUMENT, MARKED, NAMES, RESULTS, fill, format_cell, read_result, render

TEXT = DOCUMENT.read_text(encoding="utf-8")
SHOWN = [name for _, name, _, _ in MARKED.findall(TEXT)]


def result(**changes: object) -> dict[str, object]:
    """A small result."""
    made = dict.fromkeys(NAMES, "")
    return {
        **made,
        "title": "Speed",
        "command": ["python -m benchmarks.x"],
        "log": ["../log/training.md#fused-adamw"],
        "columns": {"side": None, "texts/s": 1},
        "rows": [{"side": "ours", "texts/s": {"value": 1250, "low": 1200, "high": 1300.25}}, {"side": "theirs"}],
        "notes": ["One run."],
        **changes,
    }


def write(folder: Path, **changes: object) -> Path:
    path = folder / "speed.json"
    path.write_text(json.dumps(result(**changes)))
    return path


def test_the_document_is_up_to_date() -> None:
    assert fill(TEXT) == TEXT, "Run: python -m benchmarks.tables"


def test_every_result_is_shown_once() -> None:
    assert len(SHOWN) > 20
    assert len(set(SHOWN)) == len(SHOWN)
    assert {path.stem for path in RESULTS.glob("*.json")} == set(SHOWN)


@pytest.mark.parametrize("name", SHOWN)
def test_a_result_says_where_its_numbers_come_from(name: str) -> None:
    read = read_result(RESULTS / f"{name}.json")
    for field in ("title", "machine", "date", "source", "log", "rows"):
        assert read[field], field
    for link in read["log"]:
        file, _, anchor = link.partition("#")
        assert f'<a id="{anchor}">' in (DOCUMENT.parent / file).read_text(encoding="utf-8")


def test_the_text_around_the_tables_holds_no_results() -> None:
    """A number with decimals would be one."""
    around = MARKED.sub("", TEXT)
    assert "nDCG@10" in around
    assert re.findall(r"\d\.\d", around) == []


@pytest.mark.parametrize(
    ("cell", "decimals", "shown"),
    [
        (None, 3, ""),
        ("out of memory", 1, "out of memory"),
        (18000, 0, "18,000"),
        (0.87, 3, "0.870"),
        ({"value": 0.87, "plus_minus": 0.017}, 3, "0.870 ±0.017"),
        ({"value": 10.3, "low": 10, "high": 10.44}, 1, "10.3 (10.0 to 10.4)"),
    ],
)
def test_a_cell_has_the_decimals_of_its_column(cell: object, decimals: int, shown: str) -> None:
    assert format_cell(cell, decimals) == shown


def test_a_result_becomes_a_table() -> None:
    shown = render(result(date="2026-11-28", machine="two cores", source="the run"))
    assert "| side | texts/s |\n| --- | --- |\n| ours | 1,250.0 (1,200.0 to 1,300.2) |\n| theirs |  |\n" in shown
    assert "\n- One run.\n" in shown
    assert "2026-11-28. Log: [fused adamw](../log/training.md#fused-adamw)." in shown
    assert "```text\npython -m benchmarks.x\n```" in shown


def test_only_what_stands_between_the_marks_is_replaced(tmp_path: Path) -> None:
    write(tmp_path)
    document = "Before.\n\n<!-- table: speed -->\nold\n<!-- end -->\n\nAfter.\n"
    filled = fill(document, tmp_path)
    assert filled.startswith("Before.\n\n<!-- table: speed -->\n**Speed**")
    assert filled.endswith("\n<!-- end -->\n\nAfter.\n")
    assert "old" not in filled
    assert fill(filled, tmp_path) == filled


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra": 1}, "missing or unknown: extra"),
        ({"rows": [{"sied": "ours"}]}, "row 1: there is no column 'sied'"),
        ({"rows": [{"side": 3}]}, "'side' holds texts, got 3"),
    ],
)
def test_a_result_with_a_mistake_is_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        read_result(write(tmp_path, **changes))
