"""The rows of stage two: pairs, and documents without queries."""

import json
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from training_run import write_pairs

from tinybert_hf import InputError, RetrievalArguments
from tinybert_hf.errors import MissingFileError
from tinybert_hf.training.pairs import load_pairs


@pytest.fixture
def triplets(tmp_path: Path) -> Path:
    rows = [f"question {i},reply {i},wrong {i},worse {i}" for i in range(80)]
    (tmp_path / "faq.csv").write_text("\n".join(["q,a,n1,n2", *rows]) + "\n")
    return tmp_path / "faq.csv"


def test_columns_are_renamed_and_held_out_rows_share_no_text(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "pairs.csv", 200, seed=0)
    data = load_pairs(RetrievalArguments(data=str(path), eval_size=50))
    assert data.train.column_names == ["query", "answer"]
    assert len(data.evaluation) == 50
    for name in ("query", "answer"):
        assert not set(data.train[name]) & set(data.evaluation[name])


@pytest.mark.parametrize("shared", ["query", "answer"])
def test_rows_that_share_one_text_with_a_held_out_row_are_left_out(shared: str) -> None:
    rows = [{"query": f"question {i}", "answer": f"reply {i}"} | {shared: f"text {i // 3}"} for i in range(90)]
    data = load_pairs(RetrievalArguments(data=rows, eval_size=10))
    assert len(data.train) < 80, "this test would be vacuous: nothing is shared"
    assert not set(data.train[shared]) & set(data.evaluation[shared])


def test_a_missing_negative_column_is_named(triplets: Path) -> None:
    arguments = RetrievalArguments(data=str(triplets), query_column="q", answer_column="a", negative_columns=["n3"])
    with pytest.raises(InputError, match=r"no column 'n3'; it has q, a, n1, n2\. Pass --negative_columns"):
        load_pairs(arguments)


def test_too_few_rows_to_hold_out_are_refused(triplets: Path) -> None:
    with pytest.raises(InputError, match="Cannot hold out 50 of 80 rows"):
        load_pairs(RetrievalArguments(data=str(triplets), query_column="q", answer_column="a", eval_size=50))


def test_a_data_set_is_read_as_often_as_it_is_named_and_no_row_on_both_sides(tmp_path: Path) -> None:
    first, second = (str(write_pairs(tmp_path / f"{seed}.csv", 100, seed)) for seed in (0, 1))
    once = load_pairs(RetrievalArguments(data=[first, second], eval_data=second))
    data = load_pairs(RetrievalArguments(data=[first, first, first, second], eval_data=second))
    expected = Counter(tuple(row.values()) for row in pd.read_csv(first).to_dict("records"))
    counts, before = (Counter(tuple(row.values()) for row in split.train) for split in (data, once))
    assert counts == Counter({row: before[row] + 2 * expected[row] for row in before})
    held_out = load_pairs(RetrievalArguments(data=[first, first], eval_size=20))
    assert not {*held_out.train["query"]} & {*held_out.evaluation["query"]}


@pytest.mark.parametrize(("rows", "held_out"), [(30, 10), (100, 10), (300, 30), (11_000, 1_000)])
def test_a_tenth_is_held_out_within_bounds(rows: int, held_out: int) -> None:
    pairs = [{"query": f"question {i}", "answer": f"reply {i}"} for i in range(rows)]
    data = load_pairs(RetrievalArguments(data=pairs))
    assert (len(data.train), len(data.evaluation)) == (rows - held_out, held_out)


def test_many_questions_for_few_answers_are_held_out_by_question(caplog: pytest.LogCaptureFixture) -> None:
    pairs = [{"query": f"question {i // 2}", "answer": f"reply {i % 20}"} for i in range(1_000)]
    with caplog.at_level("INFO", "tinybert_hf.data"):
        data = load_pairs(RetrievalArguments(data=pairs))
    assert len(data.evaluation) == 100
    assert 800 <= len(data.train) < 900, "this test would be vacuous: no question is shared"
    assert not set(data.train["query"]) & set(data.evaluation["query"])
    assert caplog.messages[-1].endswith("that share a query.")


def test_negatives_are_numbered_in_their_order(triplets: Path) -> None:
    columns = {"query_column": "q", "answer_column": "a", "negative_columns": ["n2", "n1"]}
    data = load_pairs(RetrievalArguments(data=str(triplets), eval_data=str(triplets), **columns))
    assert data.train[3] == {
        "query": "question 3",
        "answer": "reply 3",
        "negative_0": "worse 3",
        "negative_1": "wrong 3",
    }


def test_what_is_measured_on_may_be_another_file_or_a_split(triplets: Path, tmp_path: Path) -> None:
    columns = {"query_column": "q", "answer_column": "a"}
    other = tmp_path / "other.csv"
    other.write_text("q,a\nwho,me\n")
    data = load_pairs(RetrievalArguments(data=str(triplets), eval_data=str(other), **columns))
    assert (len(data.train), data.evaluation.to_list()) == (80, [{"query": "who", "answer": "me"}])
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.csv").write_text(triplets.read_text())
    (folder / "validation.csv").write_text(other.read_text())
    data = load_pairs(RetrievalArguments(data=str(folder), eval_split="validation", **columns))
    assert (len(data.train), len(data.evaluation)) == (80, 1)


def test_rows_in_memory_are_called_by_their_kind() -> None:
    frame = pd.DataFrame({"question": ["who"], "answer": ["me"]})
    with pytest.raises(
        InputError, match=r"DataFrame of 1 rows \(train\) has no column 'query'; it has question, answer"
    ):
        load_pairs(RetrievalArguments(data=frame))


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(MissingFileError, match=r"nowhere\.csv does not exist"):
        load_pairs(RetrievalArguments(data="nowhere.csv"))


# ---- Documents ----


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    rows = [{"body": f"Part {i}. It does {i} things.", "name": f"item {i}"} for i in range(60)]
    (tmp_path / "notes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "notes.jsonl"


def test_documents_are_trained_on_and_their_pairs_are_measured_on(notes: Path) -> None:
    arguments = RetrievalArguments(documents=str(notes), text_column="body", title_column="name", eval_size=20)
    data = load_pairs(arguments)
    assert (len(data.train), len(data.evaluation)) == (40, 20)
    assert (data.train.column_names, data.evaluation.column_names) == (["head", "body"], ["query", "answer"])
    number = data.evaluation[0]["query"].removeprefix("item ")
    assert data.evaluation[0]["answer"] == f"Part {number}. It does {number} things."
    assert not set(data.train["body"]) & set(data.evaluation["answer"])


def test_documents_with_the_text_of_a_held_out_one_are_left_out() -> None:
    rows = [{"text": f"It does {i // 3} things. Or so.", "title": f"item {i}"} for i in range(90)]
    data = load_pairs(RetrievalArguments(documents=rows, title_column="title", eval_size=10))
    assert len(data.train) < 80, "this test would be vacuous: nothing is shared"
    assert not set(data.train["body"]) & set(data.evaluation["answer"])


def test_a_split_says_nothing_of_documents(notes: Path) -> None:
    """It would be one of --data, which is not read."""
    arguments = RetrievalArguments(documents=str(notes), text_column="body", eval_split="validation", eval_size=20)
    assert len(load_pairs(arguments).evaluation) == 20


def test_documents_may_be_measured_on_pairs_of_another_file(notes: Path, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.csv", 30, seed=0)
    arguments = RetrievalArguments(documents=str(notes), text_column="body", eval_data=str(pairs))
    data = load_pairs(arguments)
    assert (len(data.train), len(data.evaluation)) == (60, 30)
    assert data.train[0] == {"head": "Part 0.", "body": "It does 0 things."}
    frame = pd.read_csv(pairs)
    arguments = RetrievalArguments(documents=pd.read_json(notes, lines=True), text_column="body", eval_data=frame)
    in_memory = load_pairs(arguments)
    assert in_memory.train.to_list() == data.train.to_list()
    assert in_memory.evaluation.to_list() == data.evaluation.to_list()


def test_documents_without_their_column_are_named(notes: Path) -> None:
    with pytest.raises(InputError, match=r"notes\.jsonl has no column 'text'; it has body, name\. Pass --text_column"):
        load_pairs(RetrievalArguments(documents=str(notes)))
    with pytest.raises(InputError, match=r"no column 'title'.* Pass --title_column"):
        load_pairs(RetrievalArguments(documents=str(notes), text_column="body", title_column="title"))


def test_several_files_are_read_together_with_their_encoding_and_separator(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        rows = [f"Größe {name} {i}#für {name} {i}" for i in range(40)]
        (tmp_path / name).write_text("\n".join(["query#answer", *rows]), encoding="cp1252")
    data = [str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]
    pairs = load_pairs(RetrievalArguments(data=data, encoding="cp1252", separator="#", eval_size=10))
    assert len(pairs.train) + len(pairs.evaluation) == 80
    assert {"Größe a.csv 3", "Größe b.csv 3"} <= {*pairs.train["query"], *pairs.evaluation["query"]}


def test_several_files_of_documents_are_read_together(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(
            "\n".join(f"Text {i} of {name}. It goes on with {i} of {name}." for i in range(20))
        )
    documents = [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    data = load_pairs(RetrievalArguments(documents=documents, eval_size=4))
    assert len(data.train) + len(data.evaluation) == 40
    assert len({*data.train["head"], *data.evaluation["query"]}) == 40


def test_a_list_of_answers_makes_pairs_where_it_is_asked_for() -> None:
    rows = [{"query": f"q{i}", "answer": [f"a{i}", f"b{i}"]} for i in range(20)]
    with pytest.raises(InputError, match=r"row 1, column answer: a text or a number is expected, .*--unfold_answers"):
        load_pairs(RetrievalArguments(data=rows, eval_size=2))
    data = load_pairs(RetrievalArguments(data=rows, eval_data=rows[:2], unfold_answers=True))
    assert (len(data.train), data.evaluation["answer"][:]) == (40, ["a0", "b0", "a1", "b1"])


def test_a_folder_of_documents_is_read_as_passages_with_titles(tmp_path: Path) -> None:
    (tmp_path / "tar.html").write_text("<title>Tar</title><h2>Use</h2><p>Reads archives. Writes them too.</p>" * 2)
    for number in range(30):
        (tmp_path / f"{number}.md").write_text(f"# Guide {number}\n\nRead {number} first. Then go on.")
    data = load_pairs(RetrievalArguments(documents=str(tmp_path), eval_size=10))
    heads = {*data.train["head"], *data.evaluation["query"]}
    assert {"Tar: Use", "Guide 3: Guide 3"} <= heads


def test_a_folder_of_documents_and_a_file_of_rows_are_read_together(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for number in range(20):
        (tmp_path / "docs" / f"{number}.md").write_text(f"# Guide {number}\n\nRead {number} first. Then go on.")
    rows = [json.dumps({"text": f"Row {number} reads. It writes {number} too."}) for number in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    documents = [str(tmp_path / "docs"), str(tmp_path / "rows.jsonl")]
    data = load_pairs(RetrievalArguments(documents=documents, eval_size=10))
    heads = {*data.train["head"], *data.evaluation["query"]}
    assert {"Guide 3: Guide 3", "Row 7 reads."} <= heads


def test_a_folder_with_data_files_is_data(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# No document")
    rows = [json.dumps({"text": f"Reads {number}. Writes {number} too."}) for number in range(40)]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    data = load_pairs(RetrievalArguments(documents=str(tmp_path), eval_size=10))
    assert len(data.train) + len(data.evaluation) == 40
