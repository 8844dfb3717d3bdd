"""Whatever the rows are stored in, training gets the same named columns, or a message that says what to pass.

python -m pytest tests/test_data.py -q
"""

import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from tinybert_hf.data import (
    describe_data,
    encode_labels,
    hold_out,
    iterate_texts,
    label_names,
    load_data,
    pick_examples,
    report_labels,
    select_columns,
    take_rows,
    text_id,
)
from tinybert_hf.errors import InputError, MissingFileError

ROWS = [
    {"sentence": 'good, "very" good', "stars": 5},
    {"sentence": "bad\tfood", "stars": 1},
    {"sentence": "Ünïcode ☃", "stars": 3},
]
FLAGS = {"text": "text_column", "label": "label_column"}
LOGGER = "tinybert_hf.data"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` keeps what it reads; not in the home of whoever runs the tests, and not between tests."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


WRITERS: dict[str, Callable[[Path], Any]] = {
    "rows.csv": lambda path: Dataset.from_list(ROWS).to_csv(path),
    "rows.tsv": lambda path: Dataset.from_list(ROWS).to_csv(path, sep="\t"),
    "rows.json": lambda path: path.write_text(json.dumps(ROWS), encoding="utf-8"),
    "rows.jsonl": lambda path: write_jsonl(path, ROWS),
    "rows.jsonl.gz": lambda path: path.write_bytes(
        gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode())
    ),
    "rows.v1.parquet": lambda path: Dataset.from_list(ROWS).to_parquet(path),
}


# ---- Reading ----


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    dataset = load_data(str(tmp_path / name))
    assert dataset.to_list() == ROWS
    assert load_data(str(tmp_path / name), split="validation").to_list() == ROWS  # a file is one split


def test_a_folder_has_a_split_for_each_file(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", ROWS)
    write_jsonl(folder / "validation.jsonl", ROWS[:1])
    assert load_data(str(folder)).to_list() == ROWS
    assert load_data(str(folder), split="validation").to_list() == ROWS[:1]
    with pytest.raises(
        InputError, match=r"Could not read the data set .*folder .*Unknown split \"test\"\. Should be one of"
    ):
        load_data(str(folder), split="test")


@pytest.mark.parametrize("name", ["missing.csv", "missing/train.jsonl.gz"])
def test_a_file_that_is_not_there_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFileError, match=f"{name} does not exist .looked in {tmp_path}"):
        load_data(name)


@pytest.mark.parametrize("name", ["../missing", "/missing", "a/b/c", "missing"])
def test_what_can_be_no_id_on_the_hub_is_told_at_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = f"There is no data set '{name}': no such file or folder here .in {tmp_path}"
    with pytest.raises(MissingFileError, match=expected):
        load_data(name)


def test_a_hub_id_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        InputError, match=r"Could not read the data set nobody/nothing \(config=plain, split=train, revision=v1\)"
    ):
        load_data("nobody/nothing", config="plain", revision="v1")


def test_a_folder_without_data_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match=r"empty.* doesn't contain any data files"):
        load_data(str(tmp_path / "empty"))


def test_an_unknown_kind_of_file_is_named_with_the_known_ones(tmp_path: Path) -> None:
    path = tmp_path / "rows.pdf"
    path.write_bytes(b"")
    with pytest.raises(
        InputError, match=r"rows\.pdf is none of \.csv, \.tsv, \.xlsx, \.txt, .*\.parquet; convert it to one of these"
    ):
        load_data(str(path))


@pytest.mark.parametrize("name, content", [("rows.xlsx", ""), ("rows.jsonl", '{"a": 1}\n{"a"'), ("rows.parquet", "x")])
def test_a_file_that_cannot_be_read_is_named(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=f"Could not read .*{name}"):
        load_data(str(tmp_path / name))


def test_a_word_that_can_be_no_hub_id_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tinybert_hf.data.load_dataset", None)  # nobody is asked
    with pytest.raises(
        MissingFileError, match=r"There is no data set 'pairs': no such file or folder here \(in .*OWNER/NAME"
    ):
        load_data("pairs")


def test_a_path_may_be_given_as_one(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    assert load_data(tmp_path / "rows.jsonl").to_list() == ROWS
    with pytest.raises(MissingFileError, match=r"missing\.csv does not exist"):
        load_data(tmp_path / "missing.csv")


# ---- What a notebook holds ----


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(ROWS, id="list"),
        pytest.param(tuple(ROWS), id="tuple"),
        pytest.param(Dataset.from_list(ROWS), id="data set"),
        pytest.param(pd.DataFrame(ROWS), id="frame"),
        pytest.param(pd.DataFrame(ROWS, index=[7, 8, 9])[lambda frame: frame.stars > 0], id="frame with an index"),
    ],
)
def test_rows_in_memory_are_the_rows_of_a_file(rows: Any, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    columns = {"text": "sentence", "label": "stars"}
    from_file = select_columns(load_data(str(tmp_path / "rows.jsonl")), columns, "rows", FLAGS)
    from_memory = select_columns(load_data(rows, split="validation", revision="v1"), columns, "rows", FLAGS)
    assert from_memory.to_list() == from_file.to_list()
    assert from_memory.features == from_file.features
    assert load_data(rows).column_names == ["sentence", "stars"], "no column of an index"
    assert list(iterate_texts(load_data(rows))) == [row["sentence"] for row in ROWS]


@pytest.mark.parametrize("rows", [[], None, 3, ["a", "b"], [{"a": 1}, "b"], {"a": [1, 2]}, pd.Series(["a"])])
def test_what_holds_no_rows_is_named(rows: Any) -> None:
    with pytest.raises(InputError, match=f"a list of mappings that is not empty, got {type(rows).__name__}"):
        take_rows(rows)


def test_data_is_called_by_its_name_or_by_its_kind_and_size() -> None:
    assert describe_data("stanfordnlp/sst2") == "stanfordnlp/sst2"
    assert describe_data(Path("a/b.csv")) == str(Path("a/b.csv"))
    assert describe_data(ROWS * 1000) == "list of 3,000 rows"
    assert describe_data(pd.DataFrame(ROWS)) == "DataFrame of 3 rows"
    assert describe_data(Dataset.from_list(ROWS)) == "Dataset of 3 rows"


# ---- Columns ----


def test_columns_are_renamed_and_the_others_dropped() -> None:
    dataset = Dataset.from_list([row | {"id": i} for i, row in enumerate(ROWS)])
    selected = select_columns(dataset, {"text": "sentence", "label": "stars"}, "rows.csv", FLAGS)
    assert selected.to_list() == [{"text": row["sentence"], "label": row["stars"]} for row in ROWS]


def test_a_column_may_keep_its_name_and_two_may_swap() -> None:
    dataset = Dataset.from_dict({"query": ["a"], "answer": ["b"]})
    columns = {"query": "answer", "answer": "query"}
    assert select_columns(dataset, columns, "rows", {}).to_list() == [{"query": "b", "answer": "a"}]
    columns = {"query": "query", "answer": "answer"}
    assert select_columns(dataset, columns, "rows", {}).to_list() == [{"query": "a", "answer": "b"}]


def test_a_missing_column_names_those_there_are_and_the_flag() -> None:
    with pytest.raises(InputError) as error:
        select_columns(Dataset.from_list(ROWS), {"text": "review"}, "rows.csv", FLAGS)
    assert str(error.value) == (
        "rows.csv has no column 'review'; it has sentence, stars. Pass --text_column with one of these."
    )


def test_a_column_that_is_named_twice_names_both_flags() -> None:
    flags = {"query": "query_column", "answer": "answer_column"}
    with pytest.raises(InputError) as error:
        select_columns(Dataset.from_list(ROWS), {"query": "stars", "answer": "stars"}, "rows.csv", flags)
    assert str(error.value) == (
        "rows.csv: --query_column and --answer_column both name the column 'stars'. Pass another one."
    )


def test_blank_rows_are_dropped_and_counted_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    dataset = Dataset.from_dict({"sentence": ["good", "", " \t", None, "bad", "fine"], "stars": [5, 1, 1, 1, None, 0]})
    with caplog.at_level(logging.INFO, LOGGER):
        selected = select_columns(dataset, {"text": "sentence", "label": "stars"}, "rows.csv", FLAGS)
    assert selected.to_list() == [{"text": "good", "label": 5}, {"text": "fine", "label": 0}]
    assert caplog.messages == ["rows.csv: dropped 4 of 6 rows with a blank value, as row 2."]


def test_nothing_is_logged_where_nothing_was_dropped(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, LOGGER):
        select_columns(Dataset.from_list(ROWS), {"text": "sentence"}, "rows.csv", FLAGS)
    assert caplog.messages == []


@pytest.mark.parametrize("texts", [[], ["", " "]])
def test_no_row_with_text_is_an_error(texts: list[str]) -> None:
    dataset = Dataset.from_dict({"sentence": texts}, Features({"sentence": Value("string")}))
    with pytest.raises(InputError, match=rf"rows has no row with text in sentence \(of {len(texts)} rows\)"):
        select_columns(dataset, {"text": "sentence"}, "rows", FLAGS)


def test_numbers_in_a_text_column_become_strings() -> None:
    dataset = Dataset.from_dict({"title": [1984, 2001], "year": [1949, 1968]})
    selected = select_columns(dataset, {"text": "title", "label": "year"}, "rows", FLAGS)
    assert selected.to_list() == [{"text": "1984", "label": 1949}, {"text": "2001", "label": 1968}]


# ---- Labels ----


def labelled(values: list, feature: Any) -> Dataset:
    rows = {"text": [f"text {i}" for i in range(len(values))], "label": values}
    return Dataset.from_dict(rows, Features({"text": Value("string"), "label": feature}))


@pytest.mark.parametrize(
    "values, feature, names, ids",
    [
        ([1, 0, 1], ClassLabel(names=["negative", "positive"]), ["negative", "positive"], [1, 0, 1]),
        (["pos", "neg", "pos"], Value("string"), ["neg", "pos"], [1, 0, 1]),
        ([5, 1, 10], Value("int64"), ["1", "5", "10"], [1, 0, 2]),
        ([True, False, True], Value("bool"), ["False", "True"], [1, 0, 1]),
    ],
)
def test_labels_of_every_kind_become_ids(values: list, feature: Any, names: list[str], ids: list[int]) -> None:
    dataset = labelled(values, feature)
    assert label_names(dataset) == names
    encoded = encode_labels(dataset, names, "rows")
    assert encoded.to_list() == [{"text": f"text {i}", "label": label} for i, label in enumerate(ids)]


def test_labels_take_the_ids_of_the_model_not_of_the_data() -> None:
    dataset = labelled([0, 1], ClassLabel(names=["bad", "good"]))
    assert encode_labels(dataset, ["good", "bad"], "rows")["label"][:] == [1, 0]


@pytest.mark.parametrize(
    "values, feature, unknown",
    [([-1, 0], ClassLabel(names=["negative", "positive"]), "-1"), (["mixed", "negative"], Value("string"), "mixed")],
)
def test_an_unknown_label_is_named(values: list, feature: Any, unknown: str) -> None:
    dataset = labelled(values, feature)
    with pytest.raises(InputError, match=rf"rows has labels unknown to the model: {unknown}; .*negative, positive"):
        encode_labels(dataset, ["negative", "positive"], "rows")


def test_one_class_is_an_error() -> None:
    dataset = labelled(["good", "good"], Value("string"))
    with pytest.raises(InputError, match="rows has the label good only"):
        encode_labels(dataset, label_names(dataset), "rows")


def test_labels_that_look_like_slips_are_told(caplog: pytest.LogCaptureFixture) -> None:
    dataset = labelled(["Billing", "billing ", "billing ", "Returns", "Returns", "Billing"], Value("string"))
    report_labels(dataset, "rows.csv")
    assert caplog.messages == [
        "rows.csv: ['Billing', 'billing '] are classes of their own. If they mean the same, write them alike."
    ]
    caplog.clear()
    report_labels(labelled(["a", "a", "b"], Value("string")), "rows.csv")
    assert caplog.messages == ["rows.csv: only one row has the label b. More rows are needed to learn it."]


# ---- Holding out ----


def test_no_text_stands_on_both_sides(caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"query": f"q{i // 2}", "answer": f" a{i % 25} "} for i in range(100)]
    with caplog.at_level(logging.INFO, LOGGER):
        split = hold_out(Dataset.from_list(rows), size=10, seed=0, by=["query", "answer"])
    assert len(split.evaluation) == 10
    for name in ("query", "answer"):
        assert not set(split.train[name]) & set(split.evaluation[name])
    shared = 100 - len(split.train) - len(split.evaluation)
    assert shared > 0  # else there was nothing to drop
    assert caplog.messages == [f"Held out 10 rows to measure on; left out {shared} that share a query or answer."]
    kept = [tuple(row.items()) for part in split for row in part]
    assert set(kept) <= {tuple(row.items()) for row in rows}


def test_white_space_does_not_hide_a_shared_text() -> None:
    dataset = Dataset.from_dict({"text": ["same", " same", "same\n", "other"]})
    for seed in range(4):
        split = hold_out(dataset, size=1, seed=seed, by=["text"])
        assert not {text.strip() for text in split.train["text"]} & {text.strip() for text in split.evaluation["text"]}


def test_the_seed_chooses_the_rows() -> None:
    dataset = Dataset.from_dict({"text": [str(i) for i in range(50)]})
    first, again, other = (hold_out(dataset, 10, seed, ["text"]).evaluation["text"][:] for seed in (1, 1, 2))
    assert first == again != other


def test_holding_out_more_than_half_is_an_error() -> None:
    dataset = Dataset.from_dict({"text": ["a", "b", "c"]})
    with pytest.raises(InputError, match=r"Cannot hold out 2 of 3 rows.*--eval_size"):
        hold_out(dataset, size=2, seed=0, by=["text"])


def test_rows_that_all_share_a_text_with_those_held_out_are_an_error() -> None:
    dataset = Dataset.from_dict({"query": ["same"] * 4, "answer": ["a", "b", "c", "d"]})
    with pytest.raises(InputError, match=r"All 2 rows share a text with the 2 held out\. Pass --eval_data"):
        hold_out(dataset, size=2, seed=0, by=["query", "answer"])


# ---- Texts ----


def test_every_string_column_is_read_row_by_row() -> None:
    dataset = Dataset.from_dict({"query": ["a", "b"], "label": [0, 1], "answer": ["c", None]})
    assert list(iterate_texts(dataset)) == ["a", "c", "b"]


@pytest.mark.parametrize("name", WRITERS)
def test_the_texts_of_every_kind_of_file_are_read(name: str, tmp_path: Path) -> None:
    """Some readers make other strings of them (large_string)."""
    WRITERS[name](tmp_path / name)
    assert list(iterate_texts(load_data(str(tmp_path / name)))) == [row["sentence"] for row in ROWS]


def test_text_ids_are_equal_for_equal_texts_on_every_process() -> None:
    assert text_id("a text") == text_id(" a text\n")
    assert len({text_id(text) for text in ("a text", "A text", "a  text", "", "☃")}) == 5
    assert all(0 <= text_id(str(i)) < 2**63 for i in range(1000))
    # BLAKE2b of "a text", first 8 bytes, halved: from `printf 'a text' | b2sum -l 64`
    assert text_id("a text") == 0x536408935BE0E950 >> 1


# ---- Examples for the card ----


def test_no_example_comes_twice_and_none_has_a_label() -> None:
    rows = [{"query": f"q{i // 2}", "answer": f"a{i}", "negative_0": "n", "label": 1} for i in range(40)]
    assert pick_examples(Dataset.from_list(rows)) == [{"query": f"q{i}", "answer": f"a{2 * i}"} for i in range(12)]


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("  zwei\n Wörter ", "zwei Wörter"),
        ("word " * 100, ("word " * 40)[:-1]),
        ("長" * 300, "長" * 200),
        ("a" * 199 + " bcd", "a" * 199),
    ],
)
def test_a_long_example_is_cut_between_words_if_it_has_any(text: str, start: str) -> None:
    assert pick_examples(Dataset.from_list([{"text": text, "label": 0}])) == [{"text": start}]
