"""Measures against numbers worked by hand."""

import json
import math
from pathlib import Path

import pytest
import torch

from tinybert_hf import evaluation
from tinybert_hf.evaluation import (
    EvaluationArguments,
    bm25_run,
    classification_measures,
    evaluate_model,
    evaluate_pairs,
    import_extra,
    in_batch_loss,
    load_beir,
    rank,
    ranking_measures,
)

DOCUMENTS = {
    "d1": "play music from the command line",
    "d2": "read and write compressed archives",
    "d3": "manage photos and draw pictures",
}
QUERIES = {"q1": "music player", "q2": "photos", "unjudged": "mail"}
QRELS = {"q1": {"d1": 1}, "q2": {"d3": 1}}


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": i, "title": "", "text": text} for i, text in DOCUMENTS.items()]
    queries = [{"_id": i, "text": text} for i, text in QUERIES.items()]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = ["query-id\tcorpus-id\tscore", "q1\td1\t1", "q2\td3\t1"]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    return folder


def test_the_right_answer_in_second_place() -> None:
    run = {"q1": {"d1": 0.5, "d2": 0.9}, "q2": {"d3": 0.9, "d1": 0.1}}
    values = ranking_measures(QRELS, run)
    assert values["nDCG@10"] == pytest.approx((1 / math.log2(3) + 1) / 2)
    assert values["RR@10"] == pytest.approx((1 / 2 + 1) / 2)


def test_a_query_without_results_counts_as_zero() -> None:
    assert ranking_measures(QRELS, {"q1": {"d1": 1.0}})["RR@10"] == pytest.approx(0.5)


def test_rank_keeps_the_best_first() -> None:
    run = rank(["q"], ["a", "b", "c"], torch.tensor([[0.1, 0.9, 0.5]]))
    assert list(run["q"]) == ["b", "c", "a"]


def test_only_judged_queries_are_read(beir: Path) -> None:
    data = load_beir(beir)
    assert set(data.queries) == {"q1", "q2"}
    assert data.corpus == DOCUMENTS
    assert data.qrels == QRELS


def test_bm25_finds_the_document_with_the_word(beir: Path) -> None:
    run = bm25_run(load_beir(beir))
    assert max(run["q1"], key=lambda i: run["q1"][i]) == "d1"
    assert max(run["q2"], key=lambda i: run["q2"][i]) == "d3"


def test_a_missing_file_of_the_layout_is_named(beir: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"qrels/dev\.tsv is missing"):
        load_beir(beir, split="dev")


def test_the_result_names_the_command_and_both_systems(beir: Path, model_folder: Path) -> None:
    result = evaluate_model(EvaluationArguments(model=str(model_folder), data=str(beir)))
    assert result["command"] == f"python -m tinybert_hf.evaluation --model {model_folder} --data {beir}"
    assert (result["queries"], result["documents"]) == (2, 3)
    assert result["results"]["BM25"]["RR@10"] == pytest.approx(1.0)
    assert set(result["results"]["model"]) == set(evaluation.MEASURES)


def test_pairs_are_ranked_among_all_distinct_answers() -> None:
    vectors = {"q1": [1.0, 0.0], "q2": [0.0, 1.0], "a1": [0.6, 0.8], "a2": [0.0, 1.0]}
    queries, answers = ["q1", "q2"] * 16, ["a1", "a2"] * 16
    values = evaluate_pairs(
        queries, answers, lambda texts: torch.tensor([vectors[text] for text in texts]), temperature=1.0
    )
    assert values["nDCG@10"] == values["RR@10"] == 1.0
    # Each query has 32 candidates, of which 16 are its own answer (15 of them masked) and 16 the other.
    first = -math.log(math.exp(0.6) / (math.exp(0.6) + 16 * math.exp(0.0)))
    second = -math.log(math.exp(1.0) / (math.exp(1.0) + 16 * math.exp(0.8)))
    assert values["loss"] == pytest.approx((first + second) / 2, rel=1e-5)


def test_the_in_batch_loss_of_equal_embeddings_is_chance() -> None:
    ids = torch.arange(70)
    loss = in_batch_loss(torch.ones(70, 4), torch.ones(70, 4), ids, ids, temperature=0.05)
    assert loss == pytest.approx(math.log(32))


def test_too_few_pairs_for_the_loss_are_refused() -> None:
    ids = torch.arange(5)
    with pytest.raises(ValueError, match="needs 32 pairs or more, got 5"):
        in_batch_loss(torch.ones(5, 4), torch.ones(5, 4), ids, ids, temperature=0.05)


def test_f1_weighs_the_classes_equally() -> None:
    values = classification_measures([0, 0, 0, 1], [0, 0, 0, 0])
    assert values["accuracy"] == 0.75
    assert values["f1_macro"] == pytest.approx((6 / 7 + 0) / 2)


def test_a_missing_extra_is_named() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'tinybert_hf\[train\]'"):
        import_extra("no_such_module_of_ours")
