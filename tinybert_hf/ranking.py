"""The best documents of a query: by meaning (embeddings), by words (BM25), and by both.

Shapes: Q queries, B of them in a block, D documents.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from .errors import import_extra
from .languages import words
from .pipeline_tinybert import fuse_scores

FUSED = 100  # best of each ranking that a fusion sees
BM25_WEIGHT = 0.3  # of its scores in a fusion with a model's, measured (docs/decisions.md)
TOP_K = FUSED  # documents ranked for each query
SCORES_TOGETHER = 2**26  # scores that are in memory together: 256 MB in fp32

Run = dict[str, dict[str, float]]  # query id -> document id -> score, best first
Score = Callable[[slice], Tensor]  # which queries -> (B, D) their scores with every document, a tensor of its own


def query_blocks(num_queries: int, num_documents: int, most: int | None = None) -> Iterator[slice]:
    """The queries in blocks whose scores with all documents fit into memory, of at most `most` queries.

    >>> [(block.start, block.stop) for block in query_blocks(5, num_documents=SCORES_TOGETHER // 2)]
    [(0, 2), (2, 4), (4, 5)]
    """
    size = max(1, SCORES_TOGETHER // max(1, num_documents))
    size = min(size, most or size)
    for start in range(0, num_queries, size):
        yield slice(start, min(start + size, num_queries))


def rank(query_ids: Sequence[str], document_ids: Sequence[str], score: Score) -> Run:
    """The `TOP_K` best documents of each query; the scores of a block of queries are in memory at a time."""
    run: Run = {}
    for block in query_blocks(len(query_ids), len(document_ids)):
        best, places = score(block).topk(min(TOP_K, len(document_ids)))
        for query_id, values, indices in zip(query_ids[block], best.tolist(), places.tolist(), strict=True):
            run[query_id] = {document_ids[i]: value for i, value in zip(indices, values, strict=True)}
    return run


def by_dot_product(query_embeddings: Tensor, document_embeddings: Tensor) -> Score:
    """Score (Q, H) against (D, H): cosine similarities, where the rows have length 1."""
    return lambda block: query_embeddings[block] @ document_embeddings.T


class Bm25:
    """BM25 over documents: `bm25s` with its defaults (Lucene's formula, k1 1.5, b 0.75, English stop words)."""

    def __init__(self, documents: Sequence[str]) -> None:
        self.bm25s = import_extra("bm25s")
        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it reports to every log there is
        self.num_documents = len(documents)
        self.index = self.bm25s.BM25()
        self.index.index(self.tokenize(documents, return_ids=True), show_progress=False)

    def tokenize(self, texts: Iterable[str], return_ids: bool = False) -> Any:
        """Lower-case words of every script, without English stop words, as `bm25s` takes them."""
        spaced = [" ".join(words(text)) for text in texts]
        return self.bm25s.tokenize(spaced, token_pattern=r"\S+", return_ids=return_ids, show_progress=False)

    def rank(self, queries: Mapping[str, str], document_ids: Sequence[str]) -> Run:
        """The `TOP_K` best documents of each query (id -> text); those without a word of it are left out."""
        run = rank([*queries], document_ids, self.score([*queries.values()]))
        return {query: {name: score for name, score in found.items() if score > 0} for query, found in run.items()}

    def score(self, queries: Sequence[str]) -> Score:
        """All scores of these queries; 0 where they have no word in common."""
        tokens = self.tokenize(queries)

        def score(block: slice) -> Tensor:
            scores = torch.zeros(block.stop - block.start, self.num_documents)
            for row, query in enumerate(tokens[block]):
                if query:  # without a word but stop words it finds nothing
                    scores[row] = torch.from_numpy(self.index.get_scores(query))
            return scores

        return score


def fuse_runs(bm25: Run, dense: Run) -> Run:
    """Both runs as one, each query's results fused as the hybrid search of an index does it."""
    fused = {name: fuse_scores(BM25_WEIGHT, bm25.get(name, {}), dense.get(name, {})) for name in bm25 | dense}
    return {query_id: dict(islice(scores.items(), TOP_K)) for query_id, scores in fused.items()}
