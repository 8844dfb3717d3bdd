"""One suite for both stores of a corpus: a folder and a Milvus server; BM25 on a server also with milvus-lite.

python -m pytest tests/index/test_index.py -q        # after `make interop`
"""

import json
import re
import shutil
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from conftest import TEXTS
from datasets import Dataset
from filelock import FileLock
from fresh_process import run_python
from milvus_server import milvus_server
from psutil import Process
from training_run import context, run_command
from transformers import PreTrainedTokenizerBase

from tinybert_hf import TinyBertConfig, TinyBertModel
from tinybert_hf import index as module
from tinybert_hf.cli import main
from tinybert_hf.encoding import load_search_pipeline
from tinybert_hf.errors import InputError, MissingExtraError, MissingFileError, UnreadableError
from tinybert_hf.index import SearchIndex
from tinybert_hf.index.folder import BusyError, FolderStore
from tinybert_hf.index.milvus import MilvusStore
from tinybert_hf.index.records import COLLECTION, METADATA_KEY, cut_records, text_hash
from tinybert_hf.pipeline_tinybert import fuse_scores
from tinybert_hf.ranking import BM25_WEIGHT
from tinybert_hf.tokenization import save_tokenizer

STORES = ("folder", pytest.param("milvus", marks=pytest.mark.interop))
RECORDS = [
    {"id": "cc", "text": TEXTS[0], "section": "devel", "year": 2001, "size": 1.5, "free": True},
    {"id": "play", "text": TEXTS[1], "section": "sound", "year": 2010, "size": 2, "free": False},
    {"id": "tar", "text": TEXTS[2], "section": "utils", "year": 1979},
    {"id": "getopt", "text": TEXTS[3], "section": 'it\'s "quoted" \\ é', "year": 2010, "In": "reserved"},
    {"id": 5, "text": TEXTS[4], "section": None, "size": -1.0},
]
NETWORK = {"HF_HUB_OFFLINE": "1", "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}


# ---- Fixtures ----


def save_model(folder: Path, tokenizer: PreTrainedTokenizerBase, seed: int) -> Path:
    torch.manual_seed(seed)
    config = TinyBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
        pooling="mean",
    )
    TinyBertModel(config).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("encoder"), tokenizer, seed=0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """It takes processor time also when nobody asks it, so that it must not outlive this file's tests."""
    with milvus_server("milvus", tmp_path_factory.mktemp("milvus")) as uri:
        yield uri


def new_address(store: str, request: pytest.FixtureRequest, folder: Path) -> str:
    """A folder needs no server."""
    name = f"corpus_{uuid.uuid4().hex}"
    return str(folder / name) if store == "folder" else f"{request.getfixturevalue('server')}/{name}"


@pytest.fixture(params=STORES)
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an index that is not there yet."""
    return new_address(request.param, request, tmp_path)


@pytest.fixture(scope="module", params=STORES)
def built(request: pytest.FixtureRequest, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The store's name and the address of an index with `RECORDS`, which tests only read."""
    address = new_address(request.param, request, tmp_path_factory.mktemp("built"))
    assert SearchIndex(address, encoder).add(RECORDS) == (5, 0)
    return request.param, address


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Any:
    """Run `tinybert index ...` in this process: its status, and what it printed and reported."""

    def run(*arguments: object) -> tuple[object, str]:
        caplog.clear()
        status: object = 0
        try:
            main(["index", *map(str, arguments)])
        except SystemExit as error:
            status = error.code
        captured = capsys.readouterr()
        return status, "\n".join([captured.out, captured.err, *caplog.messages])

    return run


def unit_rows(rows: int, width: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def texts_of(index: SearchIndex, ids: list[str]) -> dict[str, str]:
    return {row["id"]: row["text"] for row in index.store.rows([("id", "in", ids)], ["text"])}


def vectors_as_records(vectors: np.ndarray) -> list[dict[str, Any]]:
    return [{"id": i, "text": f"text {i}", "embedding": vector} for i, vector in enumerate(vectors)]


# ---- Searching ----


@pytest.mark.slow
def test_the_ranking_is_that_of_the_pipeline(built: tuple[str, str], encoder: Path) -> None:
    texts = [record["text"] for record in RECORDS]
    queries = ["play some music", "draw a picture"]
    expected = load_search_pipeline(encoder)(queries, texts, top_k=5)
    found = SearchIndex(built[1]).search(queries, top_k=9)
    for ours, theirs in zip(found, expected, strict=True):
        assert [hit["text"] for hit in ours] == [hit["text"] for hit in theirs]
        assert [hit["score"] for hit in ours] == pytest.approx([hit["score"] for hit in theirs], abs=1e-5)
    assert SearchIndex(built[1]).search(queries[0], top_k=1)[0]["id"] == found[0][0]["id"]


@pytest.mark.slow
def test_threads_find_at_once_what_they_find_one_after_the_other(built: tuple[str, str]) -> None:
    index = SearchIndex(built[1])
    mode = "hybrid" if built[0] == "folder" else "dense"
    queries = [text * (1 + number % 3) for number in range(8) for text in TEXTS]
    expected = [SearchIndex(built[1]).search(query, 3, {"year": {">": 0}}, mode) for query in queries]
    with ThreadPoolExecutor(8) as pool:  # the first ones load the model, too
        found = list(pool.map(lambda query: index.search(query, 3, {"year": {">": 0}}, mode), queries))
    assert found == expected


def test_a_model_that_moved_is_found_where_it_is_now(encoder: Path, address: str, tmp_path: Path) -> None:
    before = Path(shutil.copytree(encoder, tmp_path / "before"))
    SearchIndex(address, before, truncate_dim=16).add(TEXTS)
    expected = SearchIndex(address).search("play music")
    moved = before.rename(tmp_path / "after")
    assert SearchIndex(address, moved).search("play music") == expected
    with pytest.raises(InputError, match="has 16 dimensions, not 8"):
        SearchIndex(address, moved, truncate_dim=8)


def test_an_index_finds_its_model_from_another_folder(
    encoder: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(encoder.parent)
    SearchIndex(address, encoder.name).add(TEXTS)
    monkeypatch.chdir(tmp_path)
    assert SearchIndex(address).search("play music") == SearchIndex(address, encoder).search("play music")


def search_there(address: str, answer: Path) -> None:
    """In the child."""
    index = SearchIndex(address)
    answer.write_text(json.dumps([len(index), index.search("play some music", top_k=2)]))


@pytest.mark.slow
def test_another_process_opens_it(built: tuple[str, str], tmp_path: Path) -> None:
    process = context.Process(target=search_there, args=(built[1], tmp_path / "answer"))
    process.start()
    process.join()
    here = SearchIndex(built[1]).search("play some music", top_k=2)
    count, there = json.loads((tmp_path / "answer").read_text())
    assert count == 5
    assert [hit["id"] for hit in there] == [hit["id"] for hit in here]


def test_results_have_the_metadata_that_the_record_had(built: tuple[str, str]) -> None:
    found = {hit["id"]: hit for hit in SearchIndex(built[1]).search("anything", top_k=9)}
    for record in RECORDS:
        hit = found[str(record["id"])]
        del hit["score"]
        assert hit == {key: value for key, value in (record | {"id": str(record["id"])}).items() if value is not None}


@pytest.mark.parametrize(
    ("conditions", "ids"),
    [
        ({"section": "devel"}, {"cc"}),
        ({"section": ["devel", "sound"]}, {"cc", "play"}),
        ({"section": RECORDS[3]["section"]}, {"getopt"}),
        ({"In": "reserved"}, {"getopt"}),
        ({"year": 2010, "section": ["sound", "utils"]}, {"play"}),
        ({"year": {">=": 1979, "<": 2010}}, {"cc", "tar"}),
        ({"size": {">": 1}}, {"cc", "play"}),
        ({"size": 2}, {"play"}),
        ({"free": False}, {"play"}),
        ({"section": "none has it"}, set()),
    ],
)
def test_filters_select_the_same_in_every_store(
    built: tuple[str, str], conditions: dict[str, Any], ids: set[str]
) -> None:
    found = SearchIndex(built[1]).search("anything", top_k=9, filter=conditions)
    assert {hit["id"] for hit in found} == ids


EXPRESSIONS = {  # what is asked -> SQL of a folder, Milvus' language, and who is found
    "or": ("section = 'devel' OR year < 1990", 'section == "devel" or year < 1990', {"cc", "tar"}),
    "not": ("NOT (section = 'devel') AND year > 0", 'not (section == "devel") and year > 0', {"play", "tar", "getopt"}),
    "unlike": ("year != 2010", "year > 0 and year != 2010", {"cc", "tar"}),
    "like": ("text LIKE 'play%'", 'text like "play%"', {"play"}),
    "ids": ("id IN ('cc', 'tar')", 'id in ["cc", "tar"]', {"cc", "tar"}),
}


@pytest.mark.parametrize("asked", EXPRESSIONS)
def test_an_expression_of_the_engine_selects(built: tuple[str, str], asked: str) -> None:
    sql, milvus, ids = EXPRESSIONS[asked]
    index = SearchIndex(built[1])
    where = sql if isinstance(index.store, FolderStore) else milvus
    assert {hit["id"] for hit in index.search("anything", top_k=9, where=where)} == ids


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"where": "secton = 'x'"}, "does not take this filter: .*No field named secton. Valid fields are .*section"),
        ({"where": "section = "}, "does not take this filter: .*Expected: an expression"),
        ({"where": 'section = "vcs"'}, "No field named vcs"),
        ({"where": "year"}, "The filter year does not return a boolean"),
        ({"where": " "}, "where is an expression in place of a filter, got where=' '"),
        ({"where": "year > 1", "filter": {"year": 1}}, "where is an expression in place of a filter"),
    ],
)
@pytest.mark.parametrize("mode", ["dense", "bm25"])
def test_an_expression_that_the_engine_refuses_is_told(
    encoder: Path, tmp_path: Path, options: dict[str, Any], message: str, mode: Any
) -> None:
    index = SearchIndex(tmp_path / "corpus", encoder)
    index.add(RECORDS)
    with pytest.raises(InputError, match=message) as raised:
        index.search("music", mode=mode, **options)
    assert not isinstance(raised.value, OSError), "nothing is wrong with the files"
    assert index.search("music", mode=mode, where="year > 1")


REFUSED = "section = ", 'section == "vcs" or', "text like 5", "year >> ((", "[1, 2"


def check_refused(index: SearchIndex, where: str) -> None:
    with pytest.raises(InputError, match="does not take this filter: ") as raised:
        index.search("music", where=where)
    assert not isinstance(raised.value, OSError), "nothing is wrong with the store"
    assert index.search("music", where="year > 1")


@pytest.mark.parametrize("where", REFUSED)
def test_an_expression_that_no_engine_takes_is_told(built: tuple[str, str], where: str) -> None:
    check_refused(SearchIndex(built[1]), where)


@pytest.mark.interop
def test_an_expression_that_a_newer_server_refuses_is_told(encoder: Path, tmp_path: Path) -> None:
    """It tells them in words of its own."""
    with milvus_server("milvus-lite", tmp_path) as uri:
        index = SearchIndex(uri, encoder)
        index.add(RECORDS)
        for where in REFUSED:
            check_refused(index, where)


def check_bm25_and_fusion(index: SearchIndex) -> None:
    query = "archives of music"
    by_bm25 = index.search(query, top_k=5, mode="bm25")
    assert {hit["id"] for hit in by_bm25} == {"play", "tar"}
    assert all(hit["score"] > 0 for hit in by_bm25)
    assert {hit["id"] for hit in index.search(query, mode="bm25", filter={"year": {">": 2000}})} == {"play"}
    by_dense = index.search(query, top_k=5)
    sides = ({hit["id"]: hit["score"] for hit in side} for side in (by_bm25, by_dense))
    expected = fuse_scores(BM25_WEIGHT, *sides)
    fused = index.search(query, top_k=5, mode="hybrid")
    assert {hit["id"]: hit["score"] for hit in fused} == pytest.approx(expected, abs=1e-5)
    assert [hit["score"] for hit in fused] == sorted((hit["score"] for hit in fused), reverse=True)
    whole = {hit["id"]: hit for hit in by_dense}
    assert all(hit | {"score": 0} == whole[hit["id"]] | {"score": 0} for hit in fused)
    assert index.search(query, top_k=1, mode="hybrid") == [pytest.approx(fused[0])]
    filtered = index.search(query, top_k=5, mode="hybrid", filter={"year": {"<": 2010}})
    assert {hit["id"] for hit in filtered} == {"cc", "tar"}


@pytest.mark.parametrize("mode", ["dense", "bm25", "hybrid"])
def test_the_best_of_every_mode_are_ranked_anew_by_their_tokens(built: tuple[str, str], mode: Any) -> None:
    store, address = built
    if store == "milvus" and mode != "dense":
        pytest.skip("this server has no BM25")
    index, query = SearchIndex(address), "archives of music"
    assert index.search(query, mode=mode, rerank=0) == index.search(query, mode=mode)
    before = index.search(query, top_k=9, mode=mode)
    maxsims = index.pipeline.maxsim([query], [[hit["text"] for hit in before]])[0]
    new = {hit["id"]: score for hit, score in zip(before, maxsims, strict=True)}
    expected = fuse_scores(0.75, new, {hit["id"]: hit["score"] for hit in before})
    found = index.search(query, top_k=9, mode=mode, rerank=1_000)
    assert [hit["id"] for hit in found] == list(expected)
    assert [hit["score"] for hit in found] == pytest.approx(list(expected.values()), abs=1e-5)
    texts = {record["text"]: str(record["id"]) for record in RECORDS}
    assert all(texts[hit["text"]] == hit["id"] for hit in found)
    assert index.search([query, "mail"], top_k=1, mode=mode, rerank=9)[0][0]["id"] == found[0]["id"]


def test_the_sentence_that_answers_is_marked(built: tuple[str, str]) -> None:
    for hit in SearchIndex(built[1]).search("archives of music", highlight=True):
        assert hit["highlight"] == (0, len(hit["text"]))  # each of them is one sentence


def test_a_models_own_depth_is_that_of_a_search_by_meaning(
    encoder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = TinyBertModel.from_pretrained(encoder)
    model.config.rerank_depth = 5
    model.save_pretrained(tmp_path / "model")
    save_tokenizer(tokenizer, tmp_path / "model")
    index = SearchIndex(tmp_path / "index", tmp_path / "model")
    index.add(RECORDS)
    assert index.search("music") == index.search("music", rerank=5) != index.search("music", rerank=0)
    assert index.search("music", mode="bm25") == index.search("music", mode="bm25", rerank=0)


def test_bm25_finds_the_word_and_hybrid_adds_up_both_scores(built: tuple[str, str]) -> None:
    store, address = built
    index = SearchIndex(address)
    if store == "folder":
        check_bm25_and_fusion(index)
        return
    for mode in ("bm25", "hybrid"):
        with pytest.raises(InputError, match=r"has no BM25: Milvus has it since 2\.5.*v2\.3\.5"):
            index.search("music", mode=mode)


@pytest.mark.interop
def test_bm25_works_on_a_server_that_has_it(encoder: Path, tmp_path: Path) -> None:
    with milvus_server("milvus-lite", tmp_path) as uri:
        index = SearchIndex(uri, encoder)
        index.add(RECORDS)
        check_bm25_and_fusion(index)


def test_given_embeddings_stand_for_the_queries(built: tuple[str, str], encoder: Path) -> None:
    index = SearchIndex(built[1])
    vectors = load_search_pipeline(encoder).encode(["play music"]).numpy()
    assert index.search(None, embeddings=3 * vectors) == [[pytest.approx(hit) for hit in index.search("play music")]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"queries": " "}, "is empty"),
        ({"queries": []}, "is empty"),
        ({"top_k": 0}, "top_k must be a positive integer, got 0"),
        ({"mode": "sparse"}, "dense, bm25 or hybrid, got 'sparse'"),
        ({"queries": None}, "None only with embeddings"),
        ({"embeddings": np.ones((2, 32))}, "2 embeddings for 1 queries"),
        ({"embeddings": np.ones((1, 31))}, r"must be \(queries, 32\)"),
        ({"embeddings": np.zeros((1, 32))}, "query 0 is 0 or not finite"),
        ({"filter": {"nope": 1}}, "no field 'nope' to filter by; the index has: section"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(
    encoder: Path, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    index = SearchIndex(tmp_path / "corpus", encoder)
    index.add(RECORDS[:1])
    with pytest.raises(InputError, match=message):
        index.search(**({"queries": "music"} | arguments))


def test_an_empty_index_says_so(address: str, encoder: Path) -> None:
    index = SearchIndex(address, encoder)
    assert len(index) == 0
    assert index.delete(["a"]) == 0
    with pytest.raises(InputError, match="is empty"):
        index.search("music")


# ---- Writing ----


def test_adding_again_changes_nothing(address: str, encoder: Path) -> None:
    index = SearchIndex(address, encoder)
    assert index.add(TEXTS[:3]) == (3, 0)
    assert index.add(iter(TEXTS[:4] + TEXTS[:1])) == (1, 4)
    assert len(index) == 4
    assert {hit["id"] for hit in index.search("music", top_k=9)} == set(map(text_hash, TEXTS[:4]))


def test_a_stored_text_is_only_replaced_by_upsert(address: str, encoder: Path) -> None:
    index = SearchIndex(address, encoder)
    index.add([{"id": "a", "text": TEXTS[0], "year": 1}, {"id": "b", "text": TEXTS[1]}])
    with pytest.raises(InputError, match=r"id 'a' is in .* with another text"):
        index.add([{"id": "c", "text": TEXTS[2]}, {"id": "a", "text": TEXTS[3]}])
    with pytest.raises(InputError, match="id 'd' comes twice, with another text"):
        index.add([{"id": "d", "text": TEXTS[2]}, {"id": "d", "text": TEXTS[3]}])
    assert len(index) == 2
    assert index.upsert([{"id": "a", "text": TEXTS[4], "section": "art"}, {"id": "e", "text": TEXTS[5]}]) == 2
    assert len(index) == 3
    best = index.search(TEXTS[4], top_k=1)[0]
    assert best == {"id": "a", "score": pytest.approx(1, abs=1e-5), "text": TEXTS[4], "section": "art"}


def test_deleted_records_are_not_found(address: str, encoder: Path) -> None:
    index = SearchIndex(address, encoder)
    index.add(RECORDS)
    assert index.delete(["cc", 5, "nobody"]) == 2
    assert index.delete(["cc"]) == 0
    assert len(index) == 3
    assert {hit["id"] for hit in index.search("music", top_k=9)} == {"play", "tar", "getopt"}
    with pytest.raises(TypeError, match="got a string"):
        index.delete("cc")


def test_a_field_keeps_its_type_and_new_ones_may_come(address: str, encoder: Path) -> None:
    index = SearchIndex(address, encoder)
    index.add([{"text": TEXTS[0], "size": 0.5}])
    index.add([{"text": TEXTS[1], "size": 2, "section": "sound"}])
    with pytest.raises(InputError, match="section of the record 'x' must be of the field's type str, got 7"):
        index.add([{"id": "x", "text": TEXTS[2], "section": 7}])
    assert index.info()["fields"] == {"size": "float", "section": "str"}
    again = SearchIndex(address)
    assert [hit["text"] for hit in again.search("x", top_k=9, filter={"section": "sound"})] == [TEXTS[1]]
    assert len(again) == 2


@pytest.mark.parametrize(
    "wrap", [list, iter, pd.DataFrame, Dataset.from_list, lambda rows: pd.DataFrame(rows).convert_dtypes()]
)
def test_records_may_come_in_any_table(wrap: Any, encoder: Path, tmp_path: Path) -> None:
    rows = [{"id": "00003", "text": "play music", "year": 2001}, {"id": "b", "text": "read mail", "year": None}]
    rows = [row if row["year"] else {name: value for name, value in row.items() if name != "year"} for row in rows]
    index = SearchIndex(tmp_path / "i", encoder)
    assert index.add(wrap(rows)) == (2, 0)
    assert [hit["id"] for hit in index.search("play music", mode="bm25")] == ["00003"]
    assert index.search("play music", filter={"year": 2001})[0]["year"] == 2001


@pytest.mark.parametrize("wrap", [pd.Series, np.array, iter])
def test_texts_may_come_in_any_column(wrap: Any, encoder: Path, tmp_path: Path) -> None:
    index = SearchIndex(tmp_path / "i", encoder)
    assert index.add(wrap(["play music", "read mail"])) == (2, 0)
    assert index.search("read mail", 1)[0]["text"] == "read mail"


def test_scalars_of_numpy_are_numbers_and_what_is_missing_is_left_out(encoder: Path, tmp_path: Path) -> None:
    index = SearchIndex(tmp_path / "i", encoder)
    values = {"a": np.int64(3), "b": np.float32(0.5), "c": np.bool_(True), "d": np.str_("x")}
    index.add([{"text": "music", **values, "e": float("nan"), "f": pd.NA, "g": pd.NaT}])
    assert index.info()["fields"] == {"a": "int", "b": "float", "c": "bool", "d": "str"}


def test_half_a_character_is_named_with_its_record(encoder: Path, tmp_path: Path) -> None:
    for record in ({"text": "ab\ud800"}, {"text": "a", "id": "\ud800"}, {"text": "a", "kind": "\ud800"}):
        with pytest.raises(InputError, match=r"of records\[1\]: the character \d is half of one"):
            SearchIndex(tmp_path / "i", encoder).add(["music", record])


def test_a_single_record_must_come_in_a_list(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"pass \[record\]"):
        SearchIndex(tmp_path / "corpus", encoder).add("a text")


def test_embeddings_are_kept_without_a_model(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinybert_hf.index.BATCH", 50)
    vectors = unit_rows(120, width=24)
    index = SearchIndex(address)
    with pytest.raises(InputError, match=r"'119' has 23 dimensions; .* has 24"):
        index.add([*vectors_as_records(vectors)[:119], {"id": 119, "text": "t", "embedding": vectors[119, 1:]}])
    assert len(index) == 100  # the batches before
    assert index.add(vectors_as_records(5 * vectors)) == (20, 100)
    queries = unit_rows(7, width=24, seed=1)
    expected = (-(queries @ vectors.T)).argsort(axis=1)[:, :10]
    found = SearchIndex(address).search(None, top_k=10, embeddings=queries)
    assert [[int(hit["id"]) for hit in hits] for hits in found] == expected.tolist()
    with pytest.raises(InputError, match="Its embeddings were given: pass some, and no rerank"):
        SearchIndex(address).search("music")
    for options in ({"rerank": 5}, {"highlight": True}):
        with pytest.raises(InputError, match="without rerank and highlight"):
            SearchIndex(address).search(None, embeddings=queries, **options)
    with pytest.raises(InputError, match="rerank must be 0 or a positive integer, got -1"):
        SearchIndex(address).search("music", rerank=-1)


@pytest.mark.slow
def test_large_corpora_get_an_approximate_index_and_stay_searchable(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for store in (FolderStore, MilvusStore):
        monkeypatch.setattr(store, "ann_threshold", 400)
    vectors = unit_rows(600, width=24)
    index = SearchIndex(address)
    index.add(vectors_as_records(vectors[:300]))
    assert index.info()["vector_index"] == "none: exact"
    index.add(vectors_as_records(vectors[:500]))
    assert index.info()["vector_index"].startswith("IvfRq" if index.address[0] == "/" else "HNSW")
    index.add(vectors_as_records(vectors))
    index.delete([0])
    queries = unit_rows(20, width=24, seed=1)
    expected = (-(queries @ vectors.T)).argsort(axis=1)
    found = SearchIndex(address).search(None, top_k=10, embeddings=queries)
    recalls = [
        len({int(hit["id"]) for hit in hits} & set(ids[ids != 0][:10].tolist())) / 10
        for hits, ids in zip(found, expected, strict=True)
    ]
    assert np.mean(recalls) > 0.95
    assert index.search(None, top_k=1, embeddings=vectors[[599]])[0][0]["id"] == "599"


# ---- The model ----


def test_an_index_of_another_model_is_refused(
    built: tuple[str, str], encoder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    address = built[1]
    with pytest.raises(InputError, match=f"was made by {encoder} .* not by .*other"):
        SearchIndex(address, save_model(tmp_path / "other", tokenizer, seed=1))
    shutil.copytree(encoder, tmp_path / "copy")
    assert len(SearchIndex(address, tmp_path / "copy")) == 5  # the same weights
    with pytest.raises(InputError, match="has 32 dimensions, not 16"):
        SearchIndex(address, encoder, truncate_dim=16)


def test_a_model_that_was_trained_on_since_is_noticed(encoder: Path, tmp_path: Path, tokenizer: Any) -> None:
    model = Path(shutil.copytree(encoder, tmp_path / "model"))
    SearchIndex(tmp_path / "corpus", model).add(TEXTS)
    save_model(model, tokenizer, seed=1)
    with pytest.raises(InputError, match=r"was made by .* not by"):
        SearchIndex(tmp_path / "corpus").search("music")


def test_truncated_embeddings_are_searched_as_the_pipeline_truncates(address: str, encoder: Path) -> None:
    SearchIndex(address, encoder, truncate_dim=8).add(TEXTS)
    pipeline = load_search_pipeline(encoder)
    query, texts = (pipeline.encode(part, truncate_dim=8) for part in (["play music"], TEXTS))
    index = SearchIndex(address)
    assert index.info()["dimension"] == 8
    hits = index.search("play music", top_k=len(TEXTS))
    scores = (query @ texts.T)[0].sort(descending=True)
    assert [hit["text"] for hit in hits] == [TEXTS[i] for i in scores.indices]
    assert [hit["score"] for hit in hits] == pytest.approx(scores.values.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"truncate_dim": 8}, InputError, "pass model too"),
        ({"model": "ENCODER", "truncate_dim": 33}, InputError, "from 1 to 32, .* got 33"),
        ({"model": "/no/such/model"}, MissingFileError, "There is no model '/no/such/model': no such file or folder"),
        ({"token": "a:b"}, InputError, "A token is for a server"),
        ({"address": "s3://bucket/index"}, InputError, "folder or http"),
        ({"address": "http://127.0.0.1/a-b"}, InputError, "'a-b' .* cannot be a collection's name"),
        ({"address": "http://[::1"}, InputError, r"http://\[::1 is no address of a server: Invalid IPv6 URL"),
        ({"address": "http://127.0.0.1:99999/a"}, InputError, "is no address of a server: Port out of range"),
        ({"address": "http://127.0.0.1/a?shards=0"}, InputError, "shards=NUMBER and replicas=NUMBER"),
        ({"address": "http://127.0.0.1/a?replica=2"}, InputError, "shards=NUMBER and replicas=NUMBER"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    encoder: Path, tmp_path: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"address": tmp_path / "corpus"} | arguments
    if arguments.get("model") == "ENCODER":
        arguments["model"] = encoder
    with pytest.raises(error, match=message):
        SearchIndex(**arguments)
    assert not (tmp_path / "corpus").exists()


def test_a_new_index_without_a_model_encodes_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"knows no model .* Open it with model="):
        SearchIndex(tmp_path / "corpus").add(TEXTS)


# ---- Long texts ----


def test_long_texts_become_records_that_the_model_reads_whole(
    address: str, encoder: Path, command: Any, tmp_path: Path
) -> None:
    rows = [
        {"id": 7, "text": "\n\n".join(2 * TEXTS), "section": "all"},
        {"id": "short", "text": TEXTS[0], "section": "one"},
    ]
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--data", data, "--id_column", "id", "--metadata_columns", "section", "--chunk")
    assert command("build", "--index", address, "--model", encoder, *flags)[0] == 0
    index = SearchIndex(address)
    stored = {row["id"]: row for row in index.store.rows([("section", "in", ["all", "one"])], ["text", "section"])}
    parts = [f"7#{number}" for number in range(1, len(stored))]
    assert len(parts) > 2
    assert set(stored) == {"short", *parts}
    assert "".join(stored[name]["text"] for name in parts).replace("\n", "").startswith(TEXTS[0])
    lengths = index.pipeline.tokenizer([row["text"] for row in stored.values()])["input_ids"]
    assert max(map(len, lengths)) <= 32
    _, printed = command("add", "--index", address, *flags)
    assert f"0 added, {len(stored)} already there" in printed
    assert "cut off" not in printed


def test_parts_of_a_text_without_an_id_are_named_by_its_hash(encoder: Path) -> None:
    text = "\n\n".join(TEXTS)
    parts = list(cut_records([{"text": text}, {"text": TEXTS[0]}], load_search_pipeline(encoder)))
    assert [part.get("id") for part in parts] == [*(f"{text_hash(text)}#{n}" for n in range(1, len(parts))), None]


def test_texts_that_are_cut_off_are_counted_once(
    encoder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = [f"{number} {' '.join(TEXTS)}" for number in range(3)]
    SearchIndex(tmp_path / "corpus", encoder).add([*long, *TEXTS])
    told = [message for message in caplog.messages if "cut off" in message]
    assert told == ["3 texts are longer than the model reads, and were cut off: see --chunk."]


# ---- Faults ----


def build_in_small_batches(arguments: list[str], log: Path) -> None:
    """In the child."""
    module.BATCH = 256
    run_command(["index", *arguments], log, NETWORK)


@pytest.mark.slow
def test_a_killed_build_goes_on_where_it_was(address: str, encoder: Path, command: Any, tmp_path: Path) -> None:
    texts = [f"{TEXTS[i % 8]} {i}" for i in range(4_000)]
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)))
    arguments = ["build", "--index", address, "--model", str(encoder), "--data", str(data), "--id_column", "id"]
    process = context.Process(target=build_in_small_batches, args=(arguments, tmp_path / "log"))
    process.start()
    try:
        while len(SearchIndex(address)) == 0:
            assert process.is_alive()
            time.sleep(0.02)
    finally:
        process.kill()
        process.join()
    stored = len(SearchIndex(address))
    assert 0 < stored < len(texts)
    status, printed = command(*arguments)
    assert status == 0
    assert f"{len(texts) - stored:,} added, {stored:,} already there; {len(texts):,} records." in printed
    index = SearchIndex(address)
    assert len(index) == len(texts)
    ids = [str(i) for i in range(len(texts))]
    assert texts_of(index, ids) == dict(zip(ids, texts, strict=True))


@pytest.mark.slow
def test_two_writers_at_once_lose_nothing(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinybert_hf.index.BATCH", 20)
    records = vectors_as_records(unit_rows(300, width=16))
    SearchIndex(address).add(records[:1])

    def write(part: list[dict[str, Any]]) -> list[int]:
        return [SearchIndex(address).add(part[start : start + 50]).added for start in range(0, len(part), 50)]

    with ThreadPoolExecutor() as threads:
        added = list(threads.map(write, (records[1:151], records[151:])))
    assert added == [[50, 50, 50], [50, 50, 49]]
    index = SearchIndex(address)
    assert len(index) == len(texts_of(index, [str(record["id"]) for record in records])) == 300


def test_two_builds_of_the_same_records_at_once_store_each_once(
    address: str, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both find nothing stored, encode, and then write. A server has no lock: both may write the same record."""
    both = threading.Barrier(2)
    embed = SearchIndex._embed

    def wait_for_the_other(self: SearchIndex, *arguments: Any) -> Any:
        both.wait(timeout=20)
        return embed(self, *arguments)

    monkeypatch.setattr(SearchIndex, "_embed", wait_for_the_other)
    records = [{"id": str(row), "text": f"text {row}", "section": "a"} for row in range(40)]
    with ThreadPoolExecutor() as threads:
        added = list(threads.map(lambda _: SearchIndex(address, encoder).add(records), range(2)))
    allowed = [[(0, 40), (40, 0)], *([[(40, 0), (40, 0)]] if address.startswith("http") else [])]
    assert sorted(added) in allowed
    index = SearchIndex(address)
    assert len(index) == 40
    hits = index.search("text 7", top_k=40)
    assert sorted(hit["id"] for hit in hits) == sorted(record["id"] for record in records)


def test_two_builds_that_disagree_are_told(address: str, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, fast = (SearchIndex(address, encoder) for _ in range(2))
    embed = SearchIndex._embed

    def be_late(self: SearchIndex, *arguments: Any) -> Any:
        monkeypatch.setattr(SearchIndex, "_embed", embed)
        fast.add([{"id": "1", "text": "another text"}])
        return embed(self, *arguments)

    monkeypatch.setattr(SearchIndex, "_embed", be_late)
    with pytest.raises(InputError, match=r"The id .1. is in .* with another text"):
        slow.add([{"id": "1", "text": "a text"}])
    assert texts_of(slow, ["1"]) == {"1": "another text"}
    assert len(slow) == 1


def test_fields_of_two_writers_are_all_kept(address: str) -> None:
    vectors = unit_rows(3, width=16)
    first = SearchIndex(address)
    first.add([{"text": "a", "embedding": vectors[0]}])
    second = SearchIndex(address)
    first.add([{"text": "b", "embedding": vectors[1], "section": "x"}])
    second.add([{"text": "c", "embedding": vectors[2], "year": 1}])
    assert SearchIndex(address).info()["fields"] == {"section": "str", "year": "int"}


def test_two_builds_by_two_models_do_not_mix(address: str, encoder: Path) -> None:
    first, second = SearchIndex(address), SearchIndex(address, encoder)
    first.add(vectors_as_records(unit_rows(3, width=64)))
    with pytest.raises(InputError, match=r"was made by embeddings that were given, not by"):
        second.add(["a text"])


def test_a_writer_that_is_kept_waiting_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FolderStore, "lock_seconds", 0.1)
    SearchIndex(tmp_path / "corpus").add(vectors_as_records(unit_rows(3, width=16)))
    with FileLock(tmp_path / "corpus" / ".lock"):
        assert len(SearchIndex(tmp_path / "corpus")) == 3  # readers do not wait
        with pytest.raises(BusyError, match=r"Another process changed .* Nothing is lost"):
            SearchIndex(tmp_path / "corpus").add(vectors_as_records(unit_rows(4, width=16)))


def test_a_disk_that_is_full_is_said(tmp_path: Path) -> None:
    store = FolderStore(str(tmp_path / "corpus"))
    with pytest.raises(UnreadableError, match=r"corpus is full\. Nothing is lost: make room"), store._errors():
        raise OSError("LanceError(IO): No space left on device (os error 28)")


@pytest.mark.parametrize("top_k", [2**32, 2**63, 10**30])
def test_more_results_than_any_index_has_are_all(tmp_path: Path, top_k: int) -> None:
    index = SearchIndex(tmp_path / "corpus")
    vectors = unit_rows(5, width=16)
    index.add(vectors_as_records(vectors))
    assert len(index.search(None, top_k, embeddings=vectors[:1])[0]) == 5
    assert len(index.search("text", top_k, mode="bm25")) <= 5


def test_the_least_number_can_be_filtered_by(tmp_path: Path) -> None:
    index = SearchIndex(tmp_path / "corpus")
    vectors = unit_rows(2, width=16)
    index.add([{"id": n, "text": f"{n}", "n": n, "embedding": v} for n, v in zip((-(2**63), 7), vectors, strict=True)])
    found = index.search(None, filter={"n": -(2**63)}, embeddings=vectors[:1])[0]
    assert [hit["n"] for hit in found] == [-(2**63)]


@pytest.mark.parametrize("wrong", [[], 0, "", False])
def test_what_is_empty_and_no_filter_is_refused(tmp_path: Path, wrong: Any) -> None:
    index = SearchIndex(tmp_path / "corpus")
    vectors = unit_rows(2, width=16)
    index.add(vectors_as_records(vectors))
    with pytest.raises(InputError, match="A filter is a mapping"):
        index.search(None, filter=wrong, embeddings=vectors[:1])


def test_a_conflict_of_writers_says_that_nothing_is_lost(tmp_path: Path) -> None:
    """Writers that meet are rare; what LanceDB then raises is raised here."""
    store = FolderStore(str(tmp_path / "corpus"))
    with pytest.raises(BlockingIOError, match="Nothing is lost") as raised, store._errors():
        raise RuntimeError("lance error: Retryable commit conflict for version 3")
    assert isinstance(raised.value, InputError)  # a command prints it in one line


def test_files_that_are_missing_or_damaged_are_noticed(encoder: Path, tmp_path: Path) -> None:
    SearchIndex(tmp_path / "corpus", encoder).add(TEXTS)

    def damaged(pattern: str, change: Any) -> str:
        copy = shutil.copytree(tmp_path / "corpus", tmp_path / uuid.uuid4().hex)
        paths = [path for path in copy.rglob(pattern) if path.is_file()]
        assert paths
        for path in paths:
            change(path)
        return str(copy)

    def garble(path: Path) -> None:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    for pattern, change in (
        ("_versions/*", Path.unlink),
        ("_versions/*", garble),
        ("data/*", Path.unlink),
        ("data/*", garble),
    ):
        with pytest.raises(UnreadableError, match="restore a copy"):
            SearchIndex(damaged(pattern, change), encoder).search("music")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(UnreadableError, match="is no search index"):
        SearchIndex(tmp_path / "photos", encoder)
    with pytest.raises(UnreadableError, match="is no search index"):
        SearchIndex(tmp_path / "photos" / "a.jpg", encoder)


@pytest.mark.parametrize(
    "description",
    [
        "no JSON",
        "[32]",
        '{"model": null, "revision": null, "weights": null}',
        '{"model": null, "revision": null, "weights": null, "dimension": 16, "width": 16}',
        '{"model": null, "revision": null, "weights": null, "dimension": "16"}',
        '{"model": 7, "revision": null, "weights": null, "dimension": 16}',
    ],
)
@pytest.mark.parametrize("with_model", [False, True])
def test_a_damaged_description_is_told_with_what_to_do(
    encoder: Path, tmp_path: Path, description: str, with_model: bool
) -> None:
    columns = [("id", pa.string()), ("text", pa.string()), ("embedding", pa.list_(pa.float32(), 16))]
    schema = pa.schema(columns, metadata={METADATA_KEY: description})
    lancedb.connect(tmp_path / "corpus").create_table(COLLECTION, schema=schema)
    with pytest.raises(UnreadableError, match=r"description of the index .*corpus is damaged\. Restore a copy"):
        SearchIndex(tmp_path / "corpus", encoder if with_model else None)


@pytest.mark.parametrize("kind", ["PanicException", "RustPanic"])
def test_a_panic_of_the_engine_is_damage(tmp_path: Path, kind: str) -> None:
    """Which byte makes LanceDB panic depends on its release; its two exceptions have no names to import."""
    store = FolderStore(str(tmp_path / "corpus"))
    with pytest.raises(UnreadableError, match=r"rust panicked .*restore a copy"), store._errors():
        raise type(kind, (BaseException,), {})("rust panicked")
    with pytest.raises(KeyboardInterrupt), store._errors():
        raise KeyboardInterrupt


@pytest.mark.interop
@pytest.mark.slow
def test_a_server_that_is_killed_keeps_what_it_confirmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinybert_hf.index.BATCH", 50)
    records = vectors_as_records(unit_rows(1_000, width=24))

    def until_the_server_dies() -> Iterator[dict[str, Any]]:
        for number, record in enumerate(records):
            if number == 420:  # the ninth batch is not complete
                wrapper = next(child for child in Process().children() if str(tmp_path) in child.cmdline())
                for process in [*wrapper.children(recursive=True), wrapper]:
                    process.kill()
            yield record

    with milvus_server("milvus", tmp_path) as uri, pytest.raises(UnreadableError, match="run the same again"):
        SearchIndex(uri).add(until_the_server_dies())
    with milvus_server("milvus", tmp_path) as uri:
        index = SearchIndex(uri)
        for _ in range(120):  # it answers before it has loaded its collections again
            with suppress(UnreadableError):
                index.store.rows([("id", "in", ["0"])], [])
                break
            time.sleep(0.5)
        assert index.add(records) == (600, 400)
        assert len(index) == len(texts_of(index, [str(record["id"]) for record in records])) == 1_000
        hits = index.search(None, 1_000, embeddings=records[0]["embedding"][None])[0]
        assert len({hit["id"] for hit in hits}) == len(hits) == 1_000


HOSTILE = [
    *(
        '" or 1 == 1 or "',
        "' OR '1'='1",
        '\\" or id != "',
        "\\",
        '"',
        "'; DROP TABLE passages; --",
        "%",
        "_",
        "{}",
        "$meta",
    ),
    *('"] or true or $meta["section', "a\nb", "a\tb", "\u201d or 1 == 1", "/* */", "{section}", "null", "true"),
]


def test_filters_and_ids_inject_nothing(address: str) -> None:
    index = SearchIndex(address)
    vectors = unit_rows(len(HOSTILE) + 1, width=16)
    values = [*HOSTILE, "harmless"]
    rows = [
        {"id": value, "text": "t", "section": value, "embedding": v} for value, v in zip(values, vectors, strict=True)
    ]
    index.add(rows)
    for value in HOSTILE:
        assert [hit["id"] for hit in index.search(None, 99, {"section": value}, embeddings=vectors[:1])[0]] == [value]
        assert list(texts_of(index, [value])) == [value]
        with pytest.raises(InputError, match="There is no field"):
            index.search(None, 99, {value: "x"}, embeddings=vectors[:1])
    assert sorted(row["id"] for row in index.store.rows([("section", ">=", "")], [])) == sorted(values)
    assert index.delete(HOSTILE[:3]) == 3
    assert len(index) == len(HOSTILE) - 2


@pytest.mark.interop
def test_what_somebody_else_made_is_left_alone(server: str, tmp_path: Path) -> None:
    from pymilvus import MilvusClient

    MilvusClient(server).create_collection("theirs", dimension=4)
    with pytest.raises(UnreadableError, match=r"theirs of .* was not made by tinybert_hf"):
        SearchIndex(server + "/theirs")
    lancedb.connect(tmp_path / "theirs").create_table(COLLECTION, [{"a": 1}])
    with pytest.raises(UnreadableError, match="theirs was not made by tinybert_hf"):
        SearchIndex(tmp_path / "theirs")


class Relay:
    """A way to a server that can be cut."""

    def __init__(self, uri: str) -> None:
        self.target = ("127.0.0.1", int(uri.rsplit(":", 1)[1]))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection(self.target)
                self.ends += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)

    def cut(self) -> None:
        for end in (self.listener, *self.ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextmanager
def relay(uri: str) -> Iterator[Relay]:
    relay = Relay(uri)
    try:
        yield relay
    finally:
        relay.cut()


def test_a_server_that_is_away_is_named(encoder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(ConnectionError, match=f"http://127.0.0.1:{port} did not answer") as raised:
        SearchIndex(f"http://127.0.0.1:{port}", encoder)
    assert isinstance(raised.value, InputError)  # a command prints it in one line


@pytest.mark.interop
def test_a_server_lost_in_the_middle_keeps_what_it_has(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinybert_hf.index.BATCH", 50)
    monkeypatch.setattr(MilvusStore, "timeout", 5.0)
    records = vectors_as_records(unit_rows(150, width=24))
    name = f"corpus_{uuid.uuid4().hex}"
    with relay(server) as way:

        def until_it_is_cut() -> Iterator[dict[str, Any]]:
            yield from records[:100]
            way.cut()
            yield from records[100:]

        index = SearchIndex(f"{way.uri}/{name}")
        with pytest.raises(ConnectionError, match="What it confirmed is stored"):
            index.add(until_it_is_cut())
    again = SearchIndex(f"{server}/{name}")
    assert 50 <= len(again) <= 100
    stored = len(again)
    assert again.add(records) == (150 - stored, stored)
    assert len(again) == 150


def test_the_bar_counts_every_record_once(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinybert_hf.progress.SECONDS_BETWEEN_LINES", 0)
    index = SearchIndex(tmp_path / "counted", encoder)
    index.add([TEXTS[0]])
    capsys.readouterr()
    index.add(iter(TEXTS), show_progress_bar=True)  # one is there already; an iterator has no length
    lines = re.findall(r"Indexing: (\d+) of", capsys.readouterr().err)
    assert int(lines[-1]) == len(TEXTS)


# ---- Command line ----


@pytest.mark.slow
def test_the_commands_build_add_search_and_tell(address: str, encoder: Path, command: Any, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("name,description,section\n1,play music,sound\n2,,sound\n3,read mail,mail\n")
    columns = ("--text_column", "description", "--id_column", "name", "--metadata_columns", "section")
    data = ("--index", address, "--data", tmp_path / "a.csv", *columns)
    status, printed = command("build", *data, "--model", encoder)
    assert status == 0
    assert "2 added, 0 already there; 2 records." in printed
    assert "1 rows without text were left out." in printed
    (tmp_path / "b.txt").write_text("draw a picture\nedit text\n")
    printed = command("add", "--index", address, "--data", tmp_path / "b.txt")[1]
    assert "2 added, 0 already there; 4 records." in printed
    query = ("--index", address, "--query", "music", "--filter", '{"section": ["sound"]}', "--json")
    found = json.loads(command("search", *query)[1].splitlines()[0])
    assert [(hit["id"], hit["text"], hit["section"]) for hit in found] == [("1", "play music", "sound")]
    told = command("info", "--index", address)[1]
    assert f"model          {encoder}" in told
    assert "records        4" in told


def test_upsert_replaces_from_the_command_line(command: Any, encoder: Path, tmp_path: Path) -> None:
    data = tmp_path / "a.jsonl"
    data.write_text('{"id": "a", "text": "play music"}\n')
    arguments = ("--index", tmp_path / "corpus", "--data", data, "--id_column", "id")
    assert command("build", *arguments, "--model", encoder)[0] == 0
    data.write_text('{"id": "a", "text": "read mail"}\n')
    status, printed = command("add", *arguments)
    assert status == 1
    assert "error: The id 'a' is in" in printed
    assert "1 written; 1 records." in command("add", *arguments, "--upsert")[1]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("build", "--index", "i", "--data", "a.jsonl"), 2, 'error: Command "index build" parameter --model requires'),
        (("build", "--index", "i", "--model", "m"), 2, 'error: Command "index build" parameter --data requires'),
        (
            ("add", "--index", "i", "--data", "a.jsonl"),
            1,
            "error: There is no index at i. Make one: tinybert index build",
        ),
        (("search", "--index", "i", "--query", "a", "--filter", "{"), 1, "error: --filter is no JSON: {"),
        (("search", "--index", "i", "--query", "a"), 1, "error: There is no index at i. Make one"),
        (("remove",), 2, "Available commands: build, add, sync, search, info"),
    ],
)
def test_commands_say_what_is_missing(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], status: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    left, printed = command(*arguments)
    assert left == status
    assert message in printed


def test_a_missing_column_is_named(command: Any, encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "play music"}\n')
    status, printed = command("build", "--index", tmp_path / "i", "--model", encoder, "--data", tmp_path / "a.jsonl")
    assert status == 1
    assert "has no column 'text'; it has body. See --text_column" in printed


def test_values_that_cannot_be_stored_end_the_command_with_one_line(
    command: Any, encoder: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "play music", "tags": ["a", "b"]}\n')
    arguments = ("--index", tmp_path / "i", "--model", encoder, "--data", tmp_path / "a.jsonl")
    status, printed = command("build", *arguments, "--metadata_columns", "tags")
    assert status == 1
    assert "column tags, row 1: a text or a number is expected, got list" in printed


def test_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("lancedb", "pymilvus"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tinybert_hf\[index\]'"):
        SearchIndex(tmp_path / "corpus")
    with pytest.raises(MissingExtraError, match=r"pip install 'tinybert_hf\[milvus\]'"):
        SearchIndex("http://127.0.0.1:19530")


@pytest.mark.slow
def test_an_index_is_opened_without_reading_data_sets(tmp_path: Path) -> None:
    """`datasets` takes a second to import, and only reading records needs it."""
    code = """
        import sys
        import tinybert_hf.index
        print("datasets" in sys.modules, "transformers" in sys.modules)
    """
    assert run_python(code, tmp_path, without_package=False).split() == ["False", "True"]
