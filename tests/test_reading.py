"""Files as people have them: the texts that stand in them, or a message with the place and what to do.

python -m pytest tests/test_reading.py -q
"""

import bz2
import csv
import gzip
import json
import logging
import lzma
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from backports import zstd
from datasets import ClassLabel, Dataset, Features, Value, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from openpyxl import Workbook

from tinybert_hf.data import load_data, read_columns
from tinybert_hf.errors import InputError, MissingFileError, UnreadableError
from tinybert_hf.reading import Written, as_column, as_text, file_suffix, plain, read_rows

COLUMNS = {"query": "question", "answer": "reply"}
FLAGS = {"query": "query_column", "answer": "answer_column"}
PAIRS = [("Was kostet das?", "Nichts; gar nichts."), ('5" disks, or 3.5"?', "both"), ("Ünïcode ☃?", "NA")]


def test_the_suffix_of_a_file_is_that_before_its_compression() -> None:
    assert (file_suffix(Path("faq.v2.CSV.gz")), file_suffix(Path("notes"))) == (".csv", "")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def read(path: Any, **options: Any) -> list[tuple[str, str]]:
    return [(row["query"], row["answer"]) for row in read_columns(path, COLUMNS, FLAGS, **options)]


def table(path: Path, rows: list[tuple[str, str]], separator: str = ",", encoding: str = "utf-8") -> Path:
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=separator).writerows([("question", "reply"), *rows])
    return path


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# ---- Any table, in any kind of file ----

# No lone surrogates: they are no text. No carriage returns and control characters: Excel's format has none.
CELLS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn"]) | st.sampled_from("\n\"',;\t|"), min_size=1)
FILLED = CELLS.filter(str.strip)
TABLES = st.lists(st.tuples(FILLED, FILLED), min_size=1, max_size=6)


def write_xlsx(path: Path, rows: list[tuple[str, str]]) -> None:
    book = Workbook()
    for row in [("question", "reply"), *rows]:
        book.active.append(row)
        for cell in book.active[book.active.max_row]:
            cell.data_type = "s"  # no formula, whatever it begins with
    book.save(path)


WRITERS: dict[str, Callable[[Path, list[tuple[str, str]]], Any]] = {
    "t.csv": table,
    "t.tsv": lambda path, rows: table(path, rows, "\t"),
    "t.CSV": lambda path, rows: table(path, rows, ";"),
    "t.jsonl": lambda path, rows: lines(path, [dict(zip(("question", "reply"), row, strict=True)) for row in rows]),
    "t.json": lambda path, rows: path.write_text(json.dumps([{"question": q, "reply": a} for q, a in rows])),
    "t.parquet": lambda path, rows: pd.DataFrame(rows, columns=["question", "reply"]).to_parquet(path),
    "t.xlsx": write_xlsx,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
@given(rows=TABLES)
@settings(max_examples=40, deadline=None)
def test_any_table_of_texts_is_read_back(name: str, rows: list[tuple[str, str]]) -> None:
    if name == "t.tsv":  # one that holds tabs is no such file: see the lone quotation marks below
        rows = [(q.replace("\t", " ") + ".", a.replace("\t", " ") + ".") for q, a in rows]
    with tempfile.TemporaryDirectory() as folder, patch("datasets.config.HF_DATASETS_CACHE", folder):
        path = Path(folder, name)
        WRITERS[name](path, rows)
        assert read(path) == rows


def test_every_number_and_word_is_read_as_it_stands(tmp_path: Path) -> None:
    words = ["None", "NA", "N/A", "null", "nan", "00003", "1.10", "1e5", "TRUE", "-0"]
    path = table(tmp_path / "t.csv", [(word, word) for word in words])
    assert read(path) == [(word, word) for word in words]
    assert [row["reply"] for row in load_data(path)] == words, "no type is guessed for the column either"


# ---- Values ----


def test_one_number_among_texts_changes_none_of_them(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "reply": 'a "ü"'} for i in range(199)] + [{"question": "q", "reply": 42}]
    assert read(lines(tmp_path / "t.jsonl", rows))[-2:] == [("q198", 'a "ü"'), ("q", "42")]


def test_numbers_are_written_out_digit_by_digit(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(
        '{"question": 1.10, "reply": true}\n{"question": 12345678901234567890, "reply": "x"}'
    )
    assert read(tmp_path / "t.jsonl") == [("1.10", "True"), ("12345678901234567890", "x")]


@pytest.mark.parametrize("value", [["a", "b"], {"text": "a"}, []])
def test_lists_and_mappings_are_refused_with_their_place(value: Any, tmp_path: Path) -> None:
    path = lines(tmp_path / "t.jsonl", [{"question": "a", "reply": "b"}, {"question": "c", "reply": value}])
    with pytest.raises(
        InputError, match=r"t\.jsonl, row 2, column reply: a text or a number is expected, got (list|dict)"
    ):
        read(path)
    dataset = Dataset.from_list([{"question": "c", "reply": value or ["x"]}])
    with pytest.raises(InputError, match="row 1, column reply: a text or a number is expected"):
        read(dataset)


def test_a_list_of_answers_makes_one_pair_each_where_it_is_asked_for(tmp_path: Path) -> None:
    rows = [{"question": "a", "reply": ["b", "c"]}, {"question": "d", "reply": ["e"]}, {"question": "f", "reply": []}]
    expected = [("a", "b"), ("a", "c"), ("d", "e")]
    assert read(lines(tmp_path / "t.jsonl", rows), unfold="reply") == expected
    assert read(rows, unfold="reply") == expected
    assert read([row | {"reply": np.array(row["reply"])} for row in rows], unfold="reply") == expected
    assert read(Dataset.from_list(rows), unfold="reply") == expected
    mixed = lines(tmp_path / "m.jsonl", [*rows, {"question": "g", "reply": "h"}])
    assert read(mixed, unfold="reply") == [*expected, ("g", "h")]


@pytest.mark.parametrize(
    "value", [None, float("nan"), pd.NA, pd.NaT, np.float64("nan"), np.float32("nan")], ids=lambda value: repr(value)
)
def test_what_is_missing_is_none(value: Any) -> None:
    assert plain(value) is None
    assert as_text(value, "here") is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.int64(3), "3"),
        (np.str_("é"), "é"),
        (np.bool_(True), "True"),
        (pd.Timestamp("2024-01-02"), "2024-01-02 00:00:00"),
    ],
)
def test_scalars_of_other_libraries_are_written_out(value: Any, text: str) -> None:
    assert as_text(value, "here") == text


def test_half_a_character_is_named_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"question": "a", "reply": "b"}\n{"question": "ab\\ud800", "reply": "b"}\n')
    with pytest.raises(InputError, match=r"t\.jsonl, row 2, column question: the character 3 is half of one"):
        read(tmp_path / "t.jsonl")
    (tmp_path / "t.jsonl").write_text('{"question": "\\ud83d\\ude00", "reply": "b"}')
    assert read(tmp_path / "t.jsonl") == [("😀", "b")]


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (["7", "-7"], [7, -7]),
        (["7", None, "8"], [7, None, 8]),
        (["00003", "7"], ["00003", "7"]),
        (["+7"], ["+7"]),
        (["1_000"], ["1_000"]),
        ([" 7"], [" 7"]),
        (["9223372036854775808"], ["9223372036854775808"]),
        (["2.5", "1.0"], [2.5, 1.0]),
        (["2.50"], ["2.50"]),
        (["1", "2.5"], ["1", "2.5"]),
        (["inf"], ["inf"]),
        (["nan"], ["nan"]),
        (["7", "x"], ["7", "x"]),
        ([None], [None]),
    ],
)
def test_texts_are_numbers_where_all_of_them_print_back_the_same(texts: list[Any], values: list[Any]) -> None:
    column = as_column(texts, True, "size")
    assert column == values
    assert list(map(type, column)) == list(map(type, values))


@pytest.mark.parametrize(
    ("given", "values"),
    [
        (["7", "8"], ["7", "8"]),
        ([7, None], [7, None]),
        ([7, 2.5], [7.0, 2.5]),
        ([True, False], [True, False]),
        ([7, True], ["7", "True"]),
        ([7, "x"], ["7", "x"]),
        ([2**63, 1], ["9223372036854775808", "1"]),
    ],
)
def test_values_keep_the_type_that_all_of_them_have(given: list[Any], values: list[Any]) -> None:
    column = as_column(given, False, "size")
    assert column == values
    assert list(map(type, column)) == list(map(type, values))


def test_a_column_is_a_number_only_where_every_value_of_the_file_is(tmp_path: Path) -> None:
    rows = [f"{i},{i},{i / 2},0{i},a" for i in range(20_000)] + ["x,20000,,1,b"]
    (tmp_path / "t.csv").write_text("\n".join(["name,year,size,code,text", *rows]))
    dataset = load_data(tmp_path / "t.csv", texts=["text"], values=["name", "year", "size", "code"])
    assert {name: feature.dtype for name, feature in dataset.features.items()} == {
        "text": "string", "name": "string", "year": "int64", "size": "float64", "code": "string",
    }  # fmt: skip
    assert dataset[1] == {"text": "a", "name": "1", "year": 1, "size": 0.5, "code": "01"}
    assert dataset[20_000] == {"text": "b", "name": "x", "year": 20000, "size": None, "code": "1"}


@pytest.mark.slow
def test_a_column_nobody_asked_for_is_not_looked_at(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"question": "a", "reply": "b", "extra": 1}] * 12_000
    path = lines(tmp_path / "t.jsonl", [*rows, {"question": "c", "reply": "d", "extra": {"x": ["y"]}}])
    assert read(path)[-1] == ("c", "d")


def test_classes_of_a_parquet_file_keep_their_names(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features).to_parquet(tmp_path / "t.parquet")
    dataset = load_data(tmp_path / "t.parquet", texts=["text", "label"])
    assert dataset.features == features
    assert dataset["label"][:] == [1, 0]


# ---- Quotation marks ----


def test_a_lone_quotation_mark_swallows_no_line_of_a_tsv(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = [(f"question {i}", f"reply {i}") for i in range(540)]
    texts[10] = ('"To be', "or not")
    texts[168] = ("to be", 'he asked"')
    path = tmp_path / "t.tsv"
    path.write_text("\n".join("\t".join(row) for row in [("question", "reply"), *texts]))
    with caplog.at_level(logging.INFO):
        assert read(path) == texts
    assert f"{path}: quotation marks are read as characters, so that each line is a row." in caplog.messages
    texts[168] = ("to be", "he asked")  # now the first is never closed
    path.write_text("\n".join("\t".join(row) for row in [("question", "reply"), *texts]))
    assert read(path) == texts


def test_quotation_marks_that_hold_texts_together_are_no_part_of_them(tmp_path: Path) -> None:
    rows = [('good, "very" good', "a\nb"), ("tab\there", "c")]
    assert read(table(tmp_path / "t.tsv", rows, "\t")) == rows


def test_a_quotation_mark_that_is_not_closed_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('question,reply\nq1,"a, b"\nq2,"c, d\nq3,e\n')
    with pytest.raises(InputError, match=r"t\.csv, line 3: unexpected end of data\. Put quotation marks around"):
        read(path)


def test_lines_that_quotation_marks_of_a_csv_join_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "t.csv"
    path.write_text('question,reply\n"q1,a1\nq2",a2\nq3,a3\n')
    assert read(path) == [("q1,a1\nq2", "a2"), ("q3", "a3")]
    assert f"{path}: quotation marks join 1 lines to others. Should they be rows of their own?" in caplog.messages


def test_a_line_with_too_many_fields_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("question,reply\nq1,a1\nq2,well, yes\n")
    with pytest.raises(InputError, match=r"t\.csv, line 3 has 3 fields, and the header has 2\. .*--separator"):
        read(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("question,reply\nq1,a1,,\nq2\nq3,a3\n")
    assert read(tmp_path / "t.csv") == [("q1", "a1"), ("q3", "a3")], "empty ones are none; a short row lacks its reply"


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("question,reply,reply\na,b,c\n")
    with pytest.raises(InputError, match=r"t\.csv has 2 columns called 'reply'"):
        read(tmp_path / "t.csv")


def test_long_texts_are_read(tmp_path: Path) -> None:
    rows = [("a" * 300_000, "b")]
    assert read(table(tmp_path / "t.csv", rows)) == rows


# ---- Separators, encodings, compressions ----


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.TSV"])
def test_the_header_shows_the_separator(name: str, separator: str, tmp_path: Path) -> None:
    assert read(table(tmp_path / name, PAIRS, separator)) == PAIRS


def test_the_separator_is_the_one_that_gives_the_columns_asked_for(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("question;reply;a,b,c,d\nq;a;x\n")
    assert read(tmp_path / "t.csv") == [("q", "a")]


@pytest.mark.parametrize("separator", [";", "#"])
def test_a_line_may_tell_the_separator(separator: str, tmp_path: Path) -> None:
    rows = [("a", "b;c" if separator == "#" else "b#c")]
    text = table(tmp_path / "t.csv", rows, separator).read_text()
    (tmp_path / "t.csv").write_text(f"sep={separator}\n{text}")
    assert read(tmp_path / "t.csv") == rows


@pytest.mark.parametrize("given, separator", [("#", "#"), ("\\t", "\t")])
def test_the_separator_may_be_passed(given: str, separator: str, tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", PAIRS, separator)
    assert read(path, written=Written(separator=given)) == PAIRS


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.txt"])
def test_a_byte_order_mark_is_obeyed_and_is_no_part_of_the_first_text(name: str, encoding: str, tmp_path: Path) -> None:
    contents = {"t.csv": "text\nä", "t.jsonl": '{"text": "ä"}', "t.txt": "ä"}
    (tmp_path / name).write_text(contents[name], encoding=encoding)
    assert load_data(tmp_path / name, texts=["text"]).to_list() == [{"text": "ä"}]


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16-le"])
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.csv.gz"])
def test_another_encoding_is_proposed_by_name_and_never_guessed(name: str, encoding: str, tmp_path: Path) -> None:
    rows = [("Wie groß ist die Tür?", "Größer als üblich, für Möbel und ähnliches.")] * 30
    text = table(tmp_path / "plain.csv", [("plain", "text"), *rows]).read_text()
    if name == "t.jsonl":
        text = "\n".join(
            json.dumps({"question": q, "reply": a}, ensure_ascii=False) for q, a in [("plain", "text"), *rows]
        )
    content = text.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(UnreadableError, match=rf"{name} is not in UTF-8.* --encoding {encoding}") as error:
        read(tmp_path / name)
    if encoding == "cp1252":
        number = "2" if name == "t.jsonl" else "3"
        assert f"(line {number}). With --encoding cp1252 this line would be: " in str(error.value)
        assert "Wie groß ist die Tür?" in str(error.value)
    assert read(tmp_path / name, written=Written(encoding)) == [("plain", "text"), *rows]


def test_an_unknown_encoding_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no --encoding cp99999; usual ones are cp1252"):
        read(table(tmp_path / "t.csv", PAIRS), written=Written("cp99999"))


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd.compress,
    ".GZ": gzip.compress,
}


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_compressed_files_are_read_and_cut_ones_are_named(suffix: str, tmp_path: Path) -> None:
    content = COMPRESSIONS[suffix](table(tmp_path / "t.csv", PAIRS * 300).read_bytes())
    path = tmp_path / f"t.csv{suffix}"
    path.write_bytes(content)
    assert read(path) == PAIRS * 300
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableError, match=f"Could not read .*t.csv{suffix}: .*Is the file whole"):
        read(path)


@pytest.mark.parametrize("name", ["a [b].csv", "a*.jsonl", "a b.parquet", "ä?.xlsx", "[x].tsv", "a.ndjson"])
@pytest.mark.parametrize("folder", ["plain", "f [1] *ü"])
def test_names_may_have_any_characters(name: str, folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir()
    path = tmp_path / folder / name
    WRITERS.get(f"t{path.suffix}", WRITERS["t.jsonl"])(path, PAIRS)
    assert read(path) == PAIRS
    assert read(path.parent) == PAIRS


def test_a_file_replaced_within_the_same_second_is_read_anew(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", [("a", "b")])
    status = path.stat()
    first = read_columns(path, COLUMNS, FLAGS)
    table(path, [("a", "c")])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = read_columns(path, COLUMNS, FLAGS)
    assert (first["answer"][:], second["answer"][:]) == (["b"], ["c"])
    assert first._fingerprint != second._fingerprint
    again = read_columns(path, COLUMNS, FLAGS)
    assert again._fingerprint == second._fingerprint, "so that its tokens are found again"


def test_the_same_bytes_under_the_name_of_another_kind_are_other_rows(tmp_path: Path) -> None:
    for name, texts in (("t.csv", ["a"]), ("t.txt", ["text", "a"])):
        (tmp_path / name).write_text("text\na")
        assert load_data(tmp_path / name, texts=["text"])["text"][:] == texts


# ---- Text files ----


def test_only_an_end_of_line_ends_a_line(tmp_path: Path) -> None:
    texts = ["a\u2028b", "c\x0cd", "e\x85f", "g\0h"]
    (tmp_path / "t.txt").write_bytes("\r\n".join(texts).encode())
    assert [row["text"] for row in load_data(tmp_path / "t.txt", texts=["text"])] == texts
    assert [row["text"] for row in read_rows(tmp_path / "t.txt", suffix=".txt")] == texts


# ---- Excel ----


def test_an_excel_file_keeps_its_texts_and_writes_numbers_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    book = Workbook()
    for row in [("question", "reply"), ("00003", 42), (None, None), ("x", 2.5), ("y", True)]:
        book.active.append(row)
    book.create_sheet("more")
    book.save(tmp_path / "t.xlsx")
    with caplog.at_level(logging.INFO):
        assert read(tmp_path / "t.xlsx") == [("00003", "42"), ("x", "2.5"), ("y", "True")]
    assert any("only its first sheet is read" in message for message in caplog.messages)


# ---- JSON ----

SQUAD = {
    "version": "2.0",
    "data": [
        {
            "title": "Git",
            "paragraphs": [
                {
                    "context": "Git was made by Torvalds in 2005.",
                    "qas": [
                        {"id": "1", "question": "Who made it?", "answers": [{"text": "Torvalds", "answer_start": 16}]},
                        {"id": "2", "question": "Who sells it?", "answers": []},
                    ],
                }
            ],
        }
    ],
}


@pytest.mark.parametrize("name", ["t.json", "t.JSON", "t.jsonl"])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    "wrap",
    [lambda rows: rows, lambda rows: {"data": rows}, lambda rows: {"version": 1, "faqs": rows}],
    ids=["", "data", "faqs"],
)
def test_records_are_found_in_what_is_around_them(name: str, indent: int | None, wrap: Any, tmp_path: Path) -> None:
    rows = [{"question": "a", "reply": "b"}, {"question": "c", "reply": "d", "tags": [{"x": 1}]}]
    (tmp_path / name).write_text(json.dumps(wrap(rows), indent=indent))
    assert read(tmp_path / name) == [("a", "b"), ("c", "d")]


def test_squad_has_its_questions_with_their_paragraph_or_their_answers(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps(SQUAD))

    def pairs(answer: str) -> list[dict[str, str]]:
        return read_columns(tmp_path / "t.json", {"query": "question", "answer": answer}, FLAGS).to_list()

    context = "Git was made by Torvalds in 2005."
    assert pairs("context") == [
        {"query": "Who made it?", "answer": context},
        {"query": "Who sells it?", "answer": context},
    ]
    assert pairs("text") == [{"query": "Who made it?", "answer": "Torvalds"}]


def test_questions_may_be_the_names_of_their_answers(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps({"How?": "So.", "Why?": "Because."}))
    rows = read_columns(tmp_path / "t.json", {"query": "query", "answer": "answer"}, FLAGS)
    assert rows.to_list() == [{"query": "How?", "answer": "So."}, {"query": "Why?", "answer": "Because."}]
    with pytest.raises(InputError, match=r"has no column 'question'; it has query, answer\. Pass --query_column"):
        read(tmp_path / "t.json")


def test_lines_with_other_columns_are_no_questions_and_answers(tmp_path: Path) -> None:
    path = lines(tmp_path / "t.jsonl", [{"q": "a", "a": "b"}] * 2)
    with pytest.raises(InputError, match=r"has no column 'question'; it has q, a\."):
        read(path)


@pytest.mark.parametrize("name", ["t.json", "t.jsonl"])
@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_json_that_is_nested_without_end_is_refused(name: str, opening: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"question": "a", "reply": "b"}\n' + opening * 100_000)
    with pytest.raises(UnreadableError, match=rf"{name} is nested too deep"):
        read(tmp_path / name)


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"question": "a", "reply": "b"}\n{"question": "a", "rep')
    with pytest.raises(UnreadableError, match=r"Could not read .*t\.jsonl, line 2: Unterminated string"):
        read(tmp_path / "t.jsonl")


def test_lines_that_are_no_objects_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("[1, 2]")
    with pytest.raises(InputError, match=r"t\.json has a int where an object of columns is expected: 1"):
        read(tmp_path / "t.json")


# ---- Folders, several data sets, rows in memory ----


def test_a_folder_may_have_files_of_several_kinds(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    table(folder / "a.csv", PAIRS)
    lines(folder / "b.jsonl", [{"question": "00003", "reply": 7}])
    assert read(folder) == [*PAIRS, ("00003", "7")]


def test_a_folder_is_read_as_the_texts_that_stand_in_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "more").mkdir(parents=True)
    table(folder / "a.csv", [("00003", "NA")])
    table(folder / "more" / "b.csv", PAIRS, ";")
    (folder / "LICENSE.txt").write_text("No data.")
    assert read(folder) == [("00003", "NA"), *PAIRS]


def test_several_data_sets_are_read_one_after_the_other(tmp_path: Path) -> None:
    one, two = table(tmp_path / "a.csv", PAIRS[:1]), lines(tmp_path / "b.jsonl", [{"question": "a", "reply": 7}])
    assert read([str(one), two]) == [PAIRS[0], ("a", "7")]
    first, second = (read_columns([str(one), str(two)], COLUMNS, FLAGS) for _ in range(2))
    assert first._fingerprint == second._fingerprint


def test_labels_of_several_data_sets_have_one_set_of_names(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    Dataset.from_dict({"text": ["a"], "label": [1]}, features).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text("text,label\nb,no\n")
    columns = {"text": "text", "label": "label"}
    rows = read_columns([str(tmp_path / "a.parquet"), str(tmp_path / "b.csv")], columns, {})
    assert rows.to_list() == [{"text": "a", "label": "yes"}, {"text": "b", "label": "no"}]


@pytest.mark.parametrize(
    "wrap",
    [
        list,
        tuple,
        iter,
        lambda rows: (row for row in rows),
        pd.DataFrame,
        lambda rows: pd.DataFrame(rows).convert_dtypes(),
        lambda rows: concatenate_datasets([Dataset.from_list(rows[:1]), Dataset.from_list(rows[1:])]),
    ],
    ids=["list", "tuple", "iterator", "generator", "frame", "frame of own types", "data set"],
)
def test_rows_in_memory_of_every_kind_are_texts(wrap: Callable[[Any], Any]) -> None:
    rows = [{"question": "00003", "reply": "NA", "n": 1}, {"question": "x", "reply": None, "n": 2}]
    rows += [{"question": "y", "reply": "ü", "n": 3}]
    assert read(wrap(rows)) == [("00003", "NA"), ("y", "ü")]


@pytest.mark.parametrize("reply", [7, np.int64(7), np.str_("7")])
def test_values_of_several_types_in_a_column_are_written_out(reply: Any) -> None:
    rows = [{"question": "a", "reply": "b"}, {"question": "c", "reply": reply}, {"question": "d", "reply": pd.NA}]
    assert read(rows) == read(pd.DataFrame(rows)) == [("a", "b"), ("c", "7")]


# ---- What is dropped, what is not there ----


def test_more_than_a_tenth_of_the_rows_dropped_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        read(table(tmp_path / "a.csv", [("q", "a")] * 9 + [("q", "")]))
        read(table(tmp_path / "b.csv", [("q", "a")] * 8 + [("q", " ")]))
    levels = {record.getMessage(): record.levelname for record in caplog.records if "dropped" in record.getMessage()}
    assert levels == {
        f"{tmp_path / 'a.csv'} (train): dropped 1 of 10 rows with a blank value, as row 10.": "INFO",
        f"{tmp_path / 'b.csv'} (train): dropped 1 of 9 rows with a blank value, as row 9.": "WARNING",
    }


def test_a_header_alone_has_no_rows(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"t\.csv has no rows"):
        read(table(tmp_path / "t.csv", []))


def test_a_name_that_is_no_file_here_and_not_on_the_hub_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=rf"data/faq .*There is no such file or folder in {tmp_path} either\."):
        read("data/faq")


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(MissingFileError, match=r"gone\.txt does not exist"):
        list(read_rows(Path("gone.txt")))
