"""Measures against numbers worked by hand."""

import json
import math
from pathlib import Path

import hub_datasets
import numpy as np
import pytest
import scipy.stats
import torch
from fresh_process import run_python
from loopback_hub import LoopbackHub
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import BertConfig, BertModel, PreTrainedTokenizerBase

from tinybert_hf import evaluation
from tinybert_hf.data import import_extra
from tinybert_hf.evaluation import (
    EvaluationArguments,
    bm25_run,
    classification_measures,
    evaluate_model,
    evaluate_pairs,
    fuse,
    in_batch_loss,
    load_beir,
    percentile_interval,
    rank,
    ranking_measures,
    resampled_means,
    result_table,
)
from tinybert_hf.search import BM25_WEIGHT, DENSE_WEIGHT, load_search_pipeline

ROOT = Path(__file__).parent.parent
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


@pytest.fixture
def baseline_folder(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    """A SentenceTransformer with random weights."""
    folder = tmp_path / "somebody" / "encoder"
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "pooling": "mean",
    }
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    SentenceTransformer(modules=[Transformer(str(tmp_path / "bert")), Pooling(16)]).save(str(folder))
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


def test_bm25_leaves_out_documents_without_a_word_of_the_query(beir: Path) -> None:
    assert list(bm25_run(load_beir(beir))["q2"]) == ["d3"]


def test_data_sets_of_the_hub_read_as_the_folder_does(beir: Path, tmp_path: Path) -> None:
    layouts = {"NanoBEIR": "train", "MTEB": "test", "BEIR": "test"}
    with LoopbackHub() as hub:
        for layout in layouts:
            copy = hub_datasets.beir(layout, f"somebody/{layout}", DOCUMENTS, QUERIES, QRELS)
            for name, files in copy.items():
                hub.add_repo("dataset", name, files)
        printed = run_python(
            f"""
            import json
            from tinybert_hf.evaluation import load_beir
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
    with pytest.raises(ValueError, match="judges 1 unknown queries, as q9"):
        load_beir(beir)


def test_a_missing_file_of_the_layout_is_named(beir: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"qrels/dev\.tsv is missing"):
        load_beir(beir, split="dev")


def test_scores_are_fused_as_by_hand() -> None:
    bm25 = {"q": {"a": 9.0, "b": 8.0, "c": 5.0}, "only": {"a": 3.0}}
    dense = {"q": {"d": 0.5, "b": 0.3, "a": 0.1}}
    fused = fuse(bm25, dense)
    assert fused["q"] == pytest.approx(
        {"b": BM25_WEIGHT * 3 / 4 + DENSE_WEIGHT / 2, "d": DENSE_WEIGHT, "a": BM25_WEIGHT, "c": 0}
    )
    assert list(fused["q"]) == ["d", "b", "a", "c"]  # best first
    assert fused["only"] == {"a": BM25_WEIGHT}


def test_the_fusion_ranks_no_more_than_its_parts() -> None:
    first, second = ({"q": {f"{side}{i}": 1.0 for i in range(evaluation.TOP_K)}} for side in "ab")
    assert len(fuse(first, second)["q"]) == evaluation.TOP_K


def test_intervals_are_those_of_scipy() -> None:
    values = np.random.default_rng(1).random((50, 2))
    interval = percentile_interval(resampled_means(values))[1]
    expected = scipy.stats.bootstrap((values[:, 1],), np.mean, method="percentile", rng=2).confidence_interval
    assert interval == pytest.approx(list(expected), abs=0.003)


def test_a_difference_is_taken_on_the_same_queries() -> None:
    values = np.random.default_rng(1).random(50)
    means = resampled_means(np.stack([values, values - 0.01], axis=1))
    low, high = percentile_interval(means[:, 0] - means[:, 1])
    assert (low, high) == pytest.approx((0.01, 0.01))  # although either mean has an interval of some 0.16


def test_the_result_has_every_system_with_intervals(
    beir: Path, model_folder: Path, baseline_folder: Path
) -> None:
    arguments = EvaluationArguments(
        str(model_folder), str(beir), baselines=[str(baseline_folder)], truncate_dims=[8]
    )
    result = evaluate_model(arguments)
    assert result["command"] == (
        f"python -m tinybert_hf.evaluation --model {model_folder} --data {beir} --truncate_dims 8 "
        f"--baselines {baseline_folder}"
    )
    assert (result["queries"], result["documents"]) == (2, 3)
    encoder = "somebody/encoder"
    assert list(result["results"]) == [
        *("model", "model, 8 dimensions", "BM25", encoder, "BM25 + model", f"BM25 + {encoder}")
    ]
    assert result["results"]["BM25"]["RR@10"] == pytest.approx(1.0)
    for system, values in result["results"].items():
        assert list(values) == list(evaluation.MEASURES)
        for measure, value in values.items():
            low, high = result["intervals"][system][measure]
            assert low <= value <= high
    low, high = result["differences"]["model"]["BM25"]["nDCG@10"]
    assert low <= result["results"]["model"]["nDCG@10"] - 1.0 <= high
    assert json.loads(json.dumps(result)) == result


def test_truncated_embeddings_rank_as_encode_with_truncate_dim_does(beir: Path, model_folder: Path) -> None:
    data = load_beir(beir)
    runs = evaluation.model_runs(str(model_folder), data, [8])
    search = load_search_pipeline(model_folder)
    scores = (
        search.encode(["photos"], truncate_dim=8) @ search.encode(list(DOCUMENTS.values()), truncate_dim=8).T
    )
    run, _ = runs["model, 8 dimensions"]
    assert run["q2"] == pytest.approx(dict(zip(DOCUMENTS, scores[0].tolist(), strict=True)), abs=1e-5)
    with pytest.raises(ValueError, match=r"--truncate_dims must be from 1 to 32, .* got 33"):
        evaluation.model_runs(str(model_folder), data, [33])


def test_a_baseline_ranks_as_its_own_library_does(beir: Path, baseline_folder: Path) -> None:
    run, _ = evaluation.sentence_transformer_run(str(baseline_folder), load_beir(beir))
    encoder = SentenceTransformer(str(baseline_folder))
    scores = encoder.similarity(encoder.encode(["photos"]), encoder.encode(list(DOCUMENTS.values())))[0]
    assert run["q2"] == pytest.approx(dict(zip(DOCUMENTS, scores.tolist(), strict=True)), abs=1e-5)


def test_a_baseline_that_cannot_be_loaded_is_named(beir: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match=r"Could not load the baseline .*/empty"):
        evaluation.sentence_transformer_run(str(tmp_path / "empty"), load_beir(beir))


def test_two_baselines_of_one_name_are_refused() -> None:
    arguments = EvaluationArguments("m", "d", baselines=["a/x/y", "b/x/y"])
    with pytest.raises(ValueError, match="Two systems would be called x/y"):
        _ = arguments.baseline_names


def test_the_table_has_a_line_for_each_system_and_a_verdict_for_each_difference() -> None:
    results = {"model": 0.5, "BM25": 0.75, "BM25 + model": 0.8}
    table = result_table(
        {
            "data": "faq",
            "split": "test",
            "queries": 1000,
            "documents": 10000,
            "texts_per_second": {"model": 1234.5, "BM25": 5000.0, "BM25 + model": 990.0},
            "results": {name: dict.fromkeys(evaluation.MEASURES, value) for name, value in results.items()},
            "intervals": {name: {key: [0.45, 0.55] for key in evaluation.MEASURES} for name in results},
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
