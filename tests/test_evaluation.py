"""Models on retrieval data and on pairs held out of training."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TEXTS
from retrieval_setup import DOCUMENTS, save_sentence_transformer, write_beir
from sentence_transformers import SentenceTransformer
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedTokenizerBase

from tinybert_hf import evaluation, ranking
from tinybert_hf.beir import RetrievalData, load_beir
from tinybert_hf.encoding import load_search_pipeline
from tinybert_hf.evaluation import (
    evaluate_model,
    evaluate_pairs,
    in_batch_loss,
    load_text_encoder,
    name_baselines,
    result_table,
    run_baseline,
    run_model,
)
from tinybert_hf.measures import MEASURES
from tinybert_hf.reading import Written


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    return write_beir(tmp_path / "beir")


@pytest.fixture
def baseline_folder(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    return save_sentence_transformer(tmp_path / "somebody" / "encoder", tokenizer)


# ---- Models on retrieval data ----


@pytest.mark.slow
def test_the_result_has_every_system_with_intervals(beir: Path, model_folder: Path, baseline_folder: Path) -> None:
    result = evaluate_model(str(model_folder), str(beir), baselines=[str(baseline_folder)], truncate_dims=[8])
    asked = {"model": str(model_folder), "data": str(beir)}
    assert result["arguments"] == asked | {"truncate_dims": [8], "baselines": [str(baseline_folder)]}
    assert (result["queries"], result["documents"]) == (2, 3)
    encoder = "somebody/encoder"
    assert list(result["results"]) == [
        *("model", "model, 8 dimensions", "BM25", encoder, "BM25 + model", f"BM25 + {encoder}")
    ]
    assert result["results"]["BM25"]["RR@10"] == pytest.approx(1.0)
    for system, values in result["results"].items():
        assert list(values) == list(MEASURES)
        for measure, value in values.items():
            low, high = result["intervals"][system][measure]
            assert low <= value <= high
    low, high = result["differences"]["model"]["BM25"]["nDCG@10"]
    assert low <= result["results"]["model"]["nDCG@10"] - 1.0 <= high
    assert json.loads(json.dumps(result)) == result


@pytest.mark.slow
def test_what_ranking_anew_brings_and_takes_is_measured(beir: Path, model_folder: Path) -> None:
    result = evaluate_model(str(model_folder), str(beir), rerank=2)
    assert result["arguments"] == {"model": str(model_folder), "data": str(beir), "rerank": 2}
    systems = ["model", "BM25", "BM25 + model", "model + MaxSim", "BM25 + model + MaxSim"]
    assert list(result["results"]) == list(result["texts_per_second"]) == systems
    assert list(result["milliseconds_per_query"]) == ["model", "model + MaxSim"]
    assert all(taken > 0 for taken in result["milliseconds_per_query"].values())
    assert "\nms a query: model " in result_table(result)
    plain = evaluate_model(str(model_folder), str(beir))
    assert "MaxSim" not in str(plain) and "ms a query" not in result_table(plain)
    assert plain["results"] == {name: result["results"][name] for name in plain["results"]}


def test_a_run_is_ranked_anew_as_the_search_does_it(beir: Path, model_folder: Path) -> None:
    data, search = load_beir(beir), load_search_pipeline(model_folder)
    runs = run_model(load_search_pipeline(model_folder), data, [])
    runs["BM25 + model"] = runs["model"]
    evaluation.measure_rerank(search, data, runs, 2)
    for query_id, text in data.queries.items():
        hits = search(text, list(DOCUMENTS.values()), rerank=2)
        expected = {list(DOCUMENTS)[hit["index"]]: hit["score"] for hit in hits}
        assert runs["model + MaxSim"][0][query_id] == pytest.approx(expected, abs=1e-3)
        assert list(runs["BM25 + model + MaxSim"][0][query_id]) == list(expected)


def test_a_result_says_how_its_file_is_written(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("query;answer\nmusic;Spielt Stücke.\nphotos;Ordnet Bilder.", encoding="cp1252")
    data, folder = str(tmp_path / "a.csv"), str(model_folder)
    result = evaluate_model(folder, data, written=Written("cp1252", ";"), rerank=2)
    written = {"encoding": "cp1252", "separator": ";"}
    assert result["arguments"] == {"model": folder, "data": data, **written, "rerank": 2}


def test_truncated_embeddings_rank_as_encode_with_truncate_dim_does(beir: Path, model_folder: Path) -> None:
    data = load_beir(beir)
    runs = run_model(load_search_pipeline(model_folder), data, [8])
    search = load_search_pipeline(model_folder)
    scores = search.encode(["photos"], truncate_dim=8) @ search.encode(list(DOCUMENTS.values()), truncate_dim=8).T
    run, _ = runs["model, 8 dimensions"]
    assert run["q2"] == pytest.approx(dict(zip(DOCUMENTS, scores[0].tolist(), strict=True)), abs=1e-5)
    with pytest.raises(ValueError, match=r"--truncate_dims must be from 1 to 32, .* got 33"):
        run_model(load_search_pipeline(model_folder), data, [33])


def test_a_baseline_ranks_as_its_own_library_does(beir: Path, baseline_folder: Path) -> None:
    run, _ = run_baseline(str(baseline_folder), load_beir(beir))
    encoder = SentenceTransformer(str(baseline_folder))
    scores = encoder.similarity(encoder.encode(["photos"]), encoder.encode(list(DOCUMENTS.values())))[0]
    assert run["q2"] == pytest.approx(dict(zip(DOCUMENTS, scores.tolist(), strict=True)), abs=1e-5)


def test_a_baseline_of_ours_ranks_as_the_model_does(beir: Path, model_folder: Path) -> None:
    data = load_beir(beir)
    run, _ = run_baseline(str(model_folder), data)
    expected, _ = run_model(load_search_pipeline(model_folder), data, [])["model"]
    assert run.keys() == expected.keys()
    for query, results in expected.items():
        assert run[query] == pytest.approx(results, abs=1e-6)


def test_a_baseline_that_cannot_be_loaded_is_named(beir: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match=r"Could not load the model .*/empty"):
        run_baseline(str(tmp_path / "empty"), load_beir(beir))


def test_two_baselines_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="Two systems would be called x/y"):
        name_baselines(["a/x/y", "b/x/y"])


class Shapes(TorchDispatchMode):
    """Remembers the shapes of all tensors that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = made if isinstance(made, (tuple, list)) else [made]
        self.seen |= {tuple(tensor.shape) for tensor in tensors if isinstance(tensor, torch.Tensor)}
        return made


@pytest.mark.parametrize("caller", ["model", "baseline", "pairs"])
def test_scores_of_all_queries_are_never_in_memory_together(
    caller: str, model_folder: Path, baseline_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = {f"d{i}": f"{text} {i}" for i, text in enumerate(TEXTS * 9)}  # 72
    queries = {f"q{i}": f"{text} {i}" for i, text in enumerate(TEXTS * 5)}  # 40
    data = RetrievalData(queries, documents, {query: {"d0": 1} for query in queries})

    def evaluate() -> Any:
        if caller == "pairs":
            search = load_search_pipeline(model_folder)
            answers = list(documents.values())
            return evaluate_pairs((list(queries.values()) * 2)[: len(answers)], answers, search.encode, 0.05)
        if caller == "model":
            return run_model(load_search_pipeline(model_folder), data, [8])["model, 8 dimensions"][0]
        return run_baseline(str(baseline_folder), data)[0]

    with Shapes() as whole:
        expected = evaluate()
    monkeypatch.setattr(ranking, "SCORES_TOGETHER", 720)  # ten queries
    with Shapes() as parts:
        found = evaluate()
    assert (40, 72) in whole.seen, "this test would be vacuous"
    assert (40, 72) not in parts.seen and (10, 72) in parts.seen
    if caller == "pairs":
        assert found == pytest.approx(expected)
        return
    for query, results in expected.items():
        assert found[query] == pytest.approx(results, abs=1e-5)


def test_the_table_has_a_line_for_each_system_and_a_verdict_for_each_difference() -> None:
    results = {"model": 0.5, "BM25": 0.75, "BM25 + model": 0.8}
    table = result_table(
        {
            "data": "faq",
            "split": "test",
            "queries": 1000,
            "documents": 10000,
            "texts_per_second": {"model": 1234.5, "BM25": 5000.0, "BM25 + model": 990.0},
            "results": {name: dict.fromkeys(MEASURES, value) for name, value in results.items()},
            "intervals": {name: {key: [0.45, 0.55] for key in MEASURES} for name in results},
            "differences": {
                "model": {"BM25": {"nDCG@10": [-0.3, -0.2]}},
                "BM25 + model": {"BM25": {"nDCG@10": [-0.01, 0.11]}},
            },
        }
    )
    lines = [line.split() for line in table.splitlines()]
    assert "faq (test): 1,000 queries, 10,000 documents" in table
    assert ["nDCG@10", "MRR@10", "MAP", "Recall@10", "Recall@100", "texts/s"] in lines
    assert ["model", *["0.500", "±0.050"] * 5, "1,234"] in lines
    assert ["model", "vs", "BM25", "-0.250", "[-0.300,", "-0.200]", "below"] in lines
    assert ["BM25", "+", "model", "vs", "BM25", "+0.050", "[-0.010,", "+0.110]", "undecided"] in lines


# ---- Encoders of either kind ----


def test_a_text_encoder_scores_as_its_own_library_does(model_folder: Path, baseline_folder: Path) -> None:
    queries, documents = TEXTS[:3], TEXTS[3:]
    ours, theirs = load_search_pipeline(model_folder), SentenceTransformer(str(baseline_folder))
    expected = ours.encode(queries) @ ours.encode(documents).T
    scores = load_text_encoder(str(model_folder)).score(queries, documents)(slice(1, 3))
    torch.testing.assert_close(scores.cpu(), expected[1:3])
    expected = theirs.similarity(theirs.encode(queries), theirs.encode(documents))
    scores = load_text_encoder(str(baseline_folder)).score(queries, documents)(slice(1, 3))
    torch.testing.assert_close(scores.cpu(), expected[1:3].cpu(), rtol=1e-4, atol=1e-5)


# ---- Pairs ----


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


def test_fewer_pairs_than_a_batch_are_ranked_against_each_other() -> None:
    ids = torch.arange(5)
    loss = in_batch_loss(torch.ones(5, 4), torch.ones(5, 4), ids, ids, temperature=0.05)
    assert loss == pytest.approx(math.log(5))


def test_other_texts_are_ranked_among_the_answers() -> None:
    vectors = {"q": [1.0, 0.0], "a": [0.6, 0.8], "other": [0.8, 0.6]}

    def embed(texts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([vectors[text] for text in texts])

    assert evaluate_pairs(["q"], ["a"], embed, 1.0)["RR@10"] == 1.0
    assert evaluate_pairs(["q"], ["a"], embed, 1.0, others=["other", "a"])["RR@10"] == 0.5


def test_a_file_of_pairs_is_measured_on(model_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "faq.csv"
    file.write_text("question,reply\nmusic player,play music\nwhich song,play music\nphotos,manage photos\n")
    result = evaluate_model(str(model_folder), str(file), columns=("question", "reply"))
    assert (result["queries"], result["documents"]) == (3, 2)
    assert result["results"]["BM25"]["RR@10"] == pytest.approx(2 / 3)  # "which song" has no word in common
    assert (result["arguments"]["query_column"], result["arguments"]["answer_column"]) == ("question", "reply")
