"""Retrieval data: folders, the layouts of the Hub, and pairs."""

import json
from pathlib import Path

import hub_datasets
import pytest
from fresh_process import run_stranger
from loopback_hub import LoopbackHub
from retrieval_setup import DOCUMENTS, QRELS, QUERIES, write_beir

from tinybert_hf.beir import load_beir, pairs_as_retrieval

ROOT = Path(__file__).parent.parent


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    return write_beir(tmp_path / "beir")


def test_only_judged_queries_are_read(beir: Path) -> None:
    data = load_beir(beir)
    assert set(data.queries) == {"q1", "q2"}
    assert data.corpus == DOCUMENTS
    assert data.qrels == QRELS


@pytest.mark.slow
def test_data_sets_of_the_hub_read_as_the_folder_does(beir: Path, tmp_path: Path) -> None:
    layouts = {"NanoBEIR": "train", "MTEB": "test", "BEIR": "test"}
    with LoopbackHub() as hub:
        for layout in layouts:
            copy = hub_datasets.beir(layout, f"somebody/{layout}", DOCUMENTS, QUERIES, QRELS)
            for name, files in copy.items():
                hub.add_repo("dataset", name, files)
        printed = run_stranger(
            f"""
            import json
            from tinybert_hf.beir import load_beir
            print(json.dumps([load_beir("somebody/" + n, split) for n, split in {layouts}.items()]))
            try:
                load_beir("somebody/NanoBEIR")
            except ValueError as error:
                print(error)
            """,
            tmp_path,
            env=hub.env(tmp_path) | {"PYTHONPATH": str(ROOT)},
            without_package=False,
        )
        assert hub.unexpected == []
    read, error = printed.splitlines()
    assert json.loads(read) == [list(load_beir(beir))] * 3
    assert "split=test" in error and "['train']" in error


def test_ids_are_texts(beir: Path) -> None:
    with (beir / "corpus.jsonl").open("a") as corpus:
        corpus.write('{"_id": "007", "title": "", "text": "a spy"}\n')
    with (beir / "qrels" / "test.tsv").open("a") as judgements:
        judgements.write("q2\t007\t1\n")
    assert load_beir(beir).qrels["q2"] == {"d3": 1, "007": 1}


def test_judgements_without_their_first_line_are_refused(beir: Path) -> None:
    (beir / "qrels" / "test.tsv").write_text("q1\td1\t1\nq2\td3\t1\n")
    with pytest.raises(ValueError, match=r"qrels/test\.tsv must begin with the line query-id"):
        load_beir(beir)


def test_a_judged_query_without_text_is_named(beir: Path) -> None:
    (beir / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq9\td1\t1\n")
    with pytest.raises(ValueError, match="judges 1 unknown queries, such as q9"):
        load_beir(beir)


def test_a_missing_file_of_the_layout_is_named(beir: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"qrels/dev\.tsv is missing"):
        load_beir(beir, split="dev")


def test_a_text_is_one_document_and_one_query_however_many_pairs_have_it() -> None:
    data = pairs_as_retrieval(["how", "why", "how"], ["so", "so", "thus"])
    assert list(data.queries.values()) == ["how", "why"]
    assert list(data.corpus.values()) == ["so", "thus"]
    assert data.qrels == {"q0": {"d0": 1, "d1": 1}, "q1": {"d0": 1}}
