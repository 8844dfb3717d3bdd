"""Hard negatives: texts that a ranking takes for the answer of a query, and that are not.

The candidates are the answers of the other rows, and the texts of a corpus. A candidate that scores almost as high as
the row's own answer may be a right answer that nobody marked, so it is left out: only those up to (1 - margin) times the
answer's score are taken (TopK-PercPos of NV-Retriever, Moreira et al. 2024, arXiv:2407.15831).

Shapes: N rows, B of them in a block, D candidates.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

from .data import text_id, without_progress_bars
from .errors import InputError
from .evaluation import load_text_encoder
from .progress import progress_bar
from .ranking import Bm25, Score, by_dot_product, query_blocks

MOST_TOGETHER = 256  # rows of a block: what is drawn at random depends on it
TIE = 1e-6  # equal scores, as of all texts without a word of the query, are told apart at random
FAR = 1e4  # by which scores above the margin are lowered, so that they come last


@torch.no_grad()
def mine_negatives(
    score: Score,
    query_ids: Tensor,
    answer_ids: Tensor,
    candidate_ids: Tensor,
    num_negatives: int,
    depth: int | None = None,
    margin: float = 0.05,
    seed: int = 0,
    show_progress_bar: bool = False,
) -> Tensor:
    """For each row the candidates that its query ranks highest, below its own answer and different from it.

    A candidate is never a negative of a row if its text answers the row's query, in this row or in another one. Those
    above the margin are taken only where nothing else is left. Equal scores, such as BM25's 0, are ordered at random.
    At most MOST_TOGETHER x D scores are in memory, and less for many candidates (`ranking.SCORES_TOGETHER`).

    Args:
        score: rows -> (B, D) scores of their queries, on the device of the work. They are written into.
        query_ids, answer_ids: (N,) text ids (`data.text_id`); equal ones are the same query or answer.
        candidate_ids: (D,) text ids, all different; every answer's is among them.
        depth: choose at random among so many of the best; None takes the best.
        margin: a candidate whose score is above the answer's less `margin` times its absolute value is left out.

    Returns: (N, num_negatives) int64, numbers of candidates, the highest score first.

    Raises: InputError: if a number is out of range, or a query has fewer than `num_negatives` candidates that do not answer it.
    """
    if num_negatives < 1:
        raise InputError(f"num_negatives must be 1 or more, got {num_negatives}.")
    if depth is not None and depth < num_negatives:
        raise InputError(f"depth must be num_negatives ({num_negatives}) or more, got {depth}.")
    if not 0 <= margin <= 1:
        raise InputError(f"margin must be from 0 to 1, got {margin}.")
    columns = {candidate: column for column, candidate in enumerate(candidate_ids.tolist())}
    own = torch.tensor([columns[answer] for answer in answer_ids.tolist()])  # (N,)
    queries = query_ids.tolist()
    found = defaultdict(set)
    for query, column in zip(queries, own.tolist(), strict=True):
        found[query].add(column)
    answers = {query: torch.tensor([*some]) for query, some in found.items()}  # one that is asked in many rows has many
    if (left := len(columns) - max(map(len, answers.values()))) < num_negatives:
        raise InputError(
            f"A query has {left} candidates that do not answer it, and num_negatives is {num_negatives}. Ask for fewer, or "
            "add a corpus."
        )

    generator = torch.Generator().manual_seed(seed)
    parts: list[Tensor] = []
    with progress_bar(total=len(queries), unit="query", desc="Mining", disable=not show_progress_bar) as bar:
        for rows in query_blocks(len(queries), len(columns), MOST_TOGETHER):
            right = [answers[query] for query in queries[rows]]
            block = score(rows).float(), own[rows], right
            parts.append(select_negatives(*block, num_negatives, depth, margin, generator))
            bar.update(len(right))
    return torch.cat(parts)


def select_negatives(
    scores: Tensor,
    own: Tensor,
    right: list[Tensor],
    num_negatives: int,
    depth: int | None,
    margin: float,
    generator: torch.Generator,
) -> Tensor:
    """`mine_negatives` for a block; of each row `own` (B,) is the answer's column, and `right` has all that answer its query."""
    answer_scores = scores.gather(1, own[:, None].to(scores.device))  # (B, 1)
    close = scores > answer_scores - margin * answer_scores.abs()  # (B, D)
    noise = torch.rand(sum(scores.shape) - 1, generator=generator).to(scores.device)  # each row takes another part
    scores += TIE * noise.unfold(0, scores.shape[1], 1) - FAR * close
    for row, answering in enumerate(right):
        scores[row, answering] = -torch.inf
    best = scores.topk(min(depth or num_negatives, scores.shape[1]))
    values, columns = best.values.cpu(), best.indices.cpu()  # (B, depth)
    if depth:  # those above the margin have less chance, and right ones the least
        chances = torch.rand(values.shape, generator=generator) + (values > -FAR / 2) + values.isfinite()
        columns = columns.gather(1, chances.topk(num_negatives).indices.sort().values)  # by score again
    return columns


def mine_by_embeddings(
    query_embeddings: Tensor,
    answer_embeddings: Tensor,
    query_ids: Tensor,
    answer_ids: Tensor,
    num_negatives: int,
    **settings: Any,
) -> Tensor:
    """`mine_negatives` among the answers of the same rows, by cosine similarity; what training refreshes itself with.

    Embeddings are (N, H), any scale, and the work is done on their device; row i answers query i. Returned are row
    numbers of `answer_embeddings`, of rows with one text the first.
    """
    distinct, first = map(torch.from_numpy, np.unique(answer_ids.cpu().numpy(), return_index=True))
    queries, answers = (nn.functional.normalize(rows.float(), dim=-1) for rows in (query_embeddings, answer_embeddings))
    score = by_dot_product(queries, answers[first.to(answers.device)])
    return first[mine_negatives(score, query_ids, answer_ids, distinct, num_negatives, **settings)]


def mine_data(pairs: Dataset, corpus: Sequence[str] = (), model: str | None = None, **settings: Any) -> Dataset:
    """Pairs as `query`, `answer`, `negative_0`, `negative_1`, ..., which are chosen among the answers and the `corpus`.

    `model`, one of ours or a SentenceTransformer, ranks them, and for None BM25. `settings` are those of `mine_negatives`.
    Raises: InputError: if the model cannot be loaded, or as `mine_negatives`.
    """
    queries, answers = pairs["query"][:], pairs["answer"][:]
    candidates: dict[int, str] = {}  # equal texts, white space around them apart, are one candidate
    for text in [*answers, *corpus]:
        candidates.setdefault(text_id(text), text)
    documents = list(candidates.values())
    score = load_text_encoder(model).score(queries, documents) if model else Bm25(documents).score(queries)
    query_ids, answer_ids, ids = (torch.tensor([*map(text_id, some)]) for some in (queries, answers, documents))
    mined = mine_negatives(score, query_ids, answer_ids, ids, show_progress_bar=True, **settings)
    with without_progress_bars():
        for i, column in enumerate(mined.T.tolist()):
            pairs = pairs.add_column(f"negative_{i}", [documents[number] for number in column])
    return pairs
