"""Rankings: the best first, in little memory, by words, and fused."""

import pytest
import torch
from retrieval_setup import DOCUMENTS, QUERIES
from torch import Tensor

from tinybert_hf import ranking
from tinybert_hf.ranking import BM25_WEIGHT, TOP_K, Bm25, by_dot_product, fuse_runs, query_blocks, rank

JUDGED = {name: QUERIES[name] for name in ("q1", "q2")}


def by_words() -> ranking.Run:
    return Bm25(list(DOCUMENTS.values())).rank(JUDGED, list(DOCUMENTS))


# ---- By scores ----


def test_rank_keeps_the_best_first() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5]])
    run = rank(["q"], ["a", "b", "c"], lambda block: scores[block])
    assert list(run["q"]) == ["b", "c", "a"]


def test_no_more_scores_are_in_memory_than_fit_and_the_run_is_that_of_one_matrix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, documents = torch.randn(50, 16, generator=generator), torch.randn(300, 16, generator=generator)
    query_ids, document_ids = [f"q{i}" for i in range(50)], [f"d{i}" for i in range(300)]
    whole = queries @ documents.T
    best = whole.topk(TOP_K)
    expected = {
        query_id: {f"d{i}": score for i, score in zip(indices, values, strict=True)}
        for query_id, indices, values in zip(query_ids, best.indices.tolist(), best.values.tolist(), strict=True)
    }
    sizes: list[int] = []

    def score(block: slice) -> Tensor:
        scores = by_dot_product(queries, documents)(block)
        sizes.append(scores.numel())
        return scores

    monkeypatch.setattr(ranking, "SCORES_TOGETHER", 2_200)  # seven queries
    run = rank(query_ids, document_ids, score)
    assert sizes == [7 * 300] * 7 + [1 * 300]
    assert run.keys() == expected.keys()
    for query_id, results in expected.items():
        assert list(run[query_id]) == list(results)
        assert run[query_id] == pytest.approx(results, rel=1e-5, abs=1e-6)


def test_a_query_alone_may_have_more_scores_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "SCORES_TOGETHER", 2)
    blocks = list(query_blocks(3, num_documents=5))
    assert blocks == [slice(0, 1), slice(1, 2), slice(2, 3)]


def test_blocks_have_at_most_as_many_queries_as_asked() -> None:
    assert list(query_blocks(5, num_documents=10, most=2)) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert list(query_blocks(5, num_documents=10)) == [slice(0, 5)]
    assert list(query_blocks(0, num_documents=10)) == []


# ---- By words ----


def test_bm25_finds_the_document_with_the_word() -> None:
    run = by_words()
    assert max(run["q1"], key=lambda i: run["q1"][i]) == "d1"
    assert max(run["q2"], key=lambda i: run["q2"][i]) == "d3"


def test_bm25_leaves_out_documents_without_a_word_of_the_query() -> None:
    assert list(by_words()["q2"]) == ["d3"]


def test_bm25_scores_all_documents_as_it_ranks_them() -> None:
    scores = Bm25(list(DOCUMENTS.values())).score([*JUDGED.values(), "the of"])(slice(0, 3))
    for row, results in zip(scores.tolist(), by_words().values(), strict=False):
        found = {name: score for name, score in zip(DOCUMENTS, row, strict=True) if score > 0}
        assert found == pytest.approx(results)
    assert scores[2].tolist() == [0, 0, 0], "a query of stop words finds nothing"


# ---- Fused ----


def test_scores_are_fused_as_by_hand() -> None:
    bm25 = {"q": {"a": 9.0, "b": 8.0, "c": 5.0}, "only": {"a": 3.0}}
    dense = {"q": {"d": 0.5, "b": 0.3, "a": 0.1}}
    fused = fuse_runs(bm25, dense)
    assert fused["q"] == pytest.approx(
        {"b": BM25_WEIGHT * 3 / 4 + (1 - BM25_WEIGHT) / 2, "d": 1 - BM25_WEIGHT, "a": BM25_WEIGHT, "c": 0}
    )
    assert list(fused["q"]) == ["d", "b", "a", "c"]  # best first
    assert fused["only"] == {"a": BM25_WEIGHT}


def test_the_fusion_ranks_no_more_than_its_parts() -> None:
    first, second = ({"q": {f"{side}{i}": 1.0 for i in range(TOP_K)}} for side in "ab")
    assert len(fuse_runs(first, second)["q"]) == TOP_K
