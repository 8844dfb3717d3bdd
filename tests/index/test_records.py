"""Records: how they are read from files and checked, and filters in every form.

python -m pytest tests/index/test_records.py -q
"""

import logging
from pathlib import Path
from typing import Any

import pytest

from tinybert_hf.errors import InputError
from tinybert_hf.index.records import parse_filter, parse_record, read_records


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("year > 3", "A filter is a mapping"),
        ({"year": "2010"}, r"filter\['year'\] must be of the field's type int, got '2010'"),
        ({"year": True}, "type int, got True"),
        ({"year": []}, "empty list"),
        ({"year": {}}, "one or more of <, <=, >, >="),
        ({"year": {"!=": 3}}, "one or more of <"),
        ({"size": float("nan")}, "must be finite"),
        ({"year": 2**63}, "fit in 64 bits"),
        ({"size": 10**400}, "fit in 64 bits"),
        ({"section": "\ud800"}, r"filter\['section'\]: the character 1 is half of one"),
    ],
)
def test_filters_in_another_form_are_refused(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_filter(given, {"year": "int", "size": "float", "section": "str"})


@pytest.mark.parametrize(
    ("record", "error", "message"),
    [
        (7, TypeError, r"records\[3\] must be a string or a mapping, got int"),
        ({"id": "a"}, TypeError, r"records\[3\] must have a string as text, got None"),
        (" ", ValueError, "blank text"),
        ({"id": 1.5, "text": "a"}, TypeError, "an id is a string or an integer, got 1.5"),
        ({"id": "", "text": "a"}, ValueError, "must not be blank"),
        ({"text": "a", "score": 1}, ValueError, "'score' is a field of every result"),
        ({"text": "a", "a b": 1}, ValueError, "'a b' cannot be a field's name"),
        ({"text": "a", "tags": ["b"]}, TypeError, "tags must be a string, a number, a boolean or None"),
    ],
)
def test_records_that_cannot_be_stored_are_refused(record: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        parse_record(record, 3)
    assert isinstance(raised.value, InputError)  # a command prints it in one line


def test_columns_become_records_and_blank_texts_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.csv").write_text("name,body,year\n1,play music,2001\n2,,2002\n3,read mail,\n")
    with caplog.at_level(logging.INFO):
        rows = read_records(str(tmp_path / "a.csv"), "body", "name", ["year"])
    assert list(rows) == [
        {"text": "play music", "id": "1", "year": 2001},
        {"text": "read mail", "id": "3", "year": None},
    ]
    assert "1 rows without text were left out." in caplog.messages


def test_a_column_may_be_both_text_and_id(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("body\nplay music\n")
    assert list(read_records(str(tmp_path / "a.csv"), "body", "body")) == [{"text": "play music", "id": "play music"}]


def test_a_txt_file_has_a_text_on_each_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("draw a picture\n\nedit text\n")
    assert list(read_records(str(tmp_path / "a.txt"))) == [{"text": "draw a picture"}, {"text": "edit text"}]


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "play music"}\n')
    with pytest.raises(InputError, match=r"has no column 'text'; it has body\. See --text_column"):
        read_records(str(tmp_path / "a.jsonl"))
