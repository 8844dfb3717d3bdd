"""Hard negatives: texts that a ranking takes for the answer of a query, and that are not.

The candidates are the answers of the other rows, and the texts of a corpus. A candidate that scores almost as high as
the row's own answer may be a right answer that nobody marked, so it is left out: only those up to (1 - margin) times the
answer's score are taken (TopK-PercPos of NV-Retriever, Moreira et al. 2024, arXiv:2407.15831).

Shapes: N rows, B of them in a block, D candidates.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
OUTPUT_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


class Negatives(NamedTuple):
    """What mining found for N rows."""

    columns: Tensor  # (N, num_negatives) int64, numbers of candidates, the highest score first
    num_filtered: Tensor  # (N,) candidates that the margin kept away
    num_random: Tensor  # (N,) how many, the last ones of a row, were drawn at random for want of ranked ones


@torch.no_grad()
def mine_negatives(
    score: Score,
    query_ids: Tensor,
    answer_ids: Tensor,
    candidate_ids: Tensor,
    num_negatives: int,
    depth: int | None = None,
    margin: float = 0.05,
    lowest_score: float = -torch.inf,
    seed: int = 0,
    show_progress_bar: bool = False,
) -> Negatives:
    """For each row the candidates that its query ranks highest, below its own answer and different from it.

    A candidate is never a negative of a row if its text answers the row's query, in this row or in another one. Where
    fewer than `num_negatives` are found below the margin, the rest is drawn at random among the others (those above
    the margin only where nothing else is left), so that every row has as many; `num_random` counts them.

    Memory: at most MOST_TOGETHER x D scores, and less for many candidates (`ranking.SCORES_TOGETHER`).

    Args:
        score: rows -> (B, D) scores of their queries, on the device of the work. They are written into.
        query_ids, answer_ids: (N,) text ids (`data.text_id`); equal ones are the same query or answer.
        candidate_ids: (D,) text ids, all different; every answer's is among them.
        depth: choose at random among so many of the best; None takes the best.
        margin: a candidate whose score is above the answer's less `margin` times its absolute value is left out.
        lowest_score: a candidate that scores this or less was not found by the ranking (0 of BM25: no word in common).

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

    settings = (num_negatives, depth, margin, lowest_score, torch.Generator().manual_seed(seed))
    parts: list[Negatives] = []
    with progress_bar(total=len(queries), unit="query", desc="Mining", disable=not show_progress_bar) as bar:
        for rows in query_blocks(len(queries), len(columns), MOST_TOGETHER):
            right = [answers[query] for query in queries[rows]]
            parts.append(select_negatives(score(rows).float(), own[rows], right, *settings))
            bar.update(len(right))
    return Negatives(*(torch.cat(column) for column in zip(*parts, strict=True)))


def select_negatives(
    scores: Tensor,
    own: Tensor,
    right: list[Tensor],
    num_negatives: int,
    depth: int | None,
    margin: float,
    lowest_score: float,
    generator: torch.Generator,
) -> Negatives:
    """`mine_negatives` for a block; of each row `own` (B,) is the answer's column, and `right` has all that answer its query."""
    answer_scores = scores.gather(1, own[:, None].to(scores.device))  # (B, 1)
    for row, answering in enumerate(right):
        scores[row, answering] = -torch.inf
    close = scores > answer_scores - margin * answer_scores.abs()  # (B, D)
    best = scores.masked_fill_(close, -torch.inf).topk(min(depth or num_negatives, scores.shape[1]))
    values, columns = best.values.cpu(), best.indices.cpu()  # (B, depth)
    found = values > lowest_score  # the first ones of each row
    if depth:
        chances = torch.rand(values.shape, generator=generator).masked_fill(~found, -1)
        chosen = chances.topk(num_negatives).indices.sort().values  # by score again
        columns, found = columns.gather(1, chosen), found.gather(1, chosen)
    num_random = num_negatives - found.sum(dim=1)
    for row in num_random.nonzero().flatten().tolist():
        # Every candidate gets a chance of 0 to 1; those above the margin one below 0, so that they come last.
        chances = torch.rand(scores.shape[1], generator=generator) - close[row].cpu().float()
        chances[right[row]] = -torch.inf
        chances[columns[row, found[row]]] = -torch.inf
        columns[row, ~found[row]] = chances.topk(int(num_random[row])).indices
    return Negatives(columns, close.sum(dim=1).cpu(), num_random)


def mine_by_embeddings(
    query_embeddings: Tensor,
    answer_embeddings: Tensor,
    query_ids: Tensor,
    answer_ids: Tensor,
    num_negatives: int,
    **settings: Any,
) -> Negatives:
    """`mine_negatives` among the answers of the same rows, by cosine similarity; what training refreshes itself with.

    Embeddings are (N, H), any scale, and the work is done on their device; row i answers query i. Returned `columns` are row
    numbers of `answer_embeddings`, of rows with one text the first.
    """
    distinct, first = map(torch.from_numpy, np.unique(answer_ids.cpu().numpy(), return_index=True))
    queries, answers = (nn.functional.normalize(rows.float(), dim=-1) for rows in (query_embeddings, answer_embeddings))
    score = by_dot_product(queries, answers[first.to(answers.device)])
    mined = mine_negatives(score, query_ids, answer_ids, distinct, num_negatives, **settings)
    return mined._replace(columns=first[mined.columns])


def mine_data(
    pairs: Dataset, corpus: Sequence[str] = (), model: str | None = None, **settings: Any
) -> tuple[Dataset, Negatives]:
    """Pairs as `query`, `answer`, `negative_0`, `negative_1`, ..., and what mining found.

    Args:
        pairs: its columns `query` and `answer` are used. The answers are candidates.
        corpus: further candidates.
        model: ranks them: one of ours or a SentenceTransformer, a folder or a Hub id; None takes BM25.
        settings: of `mine_negatives`.

    Raises: InputError: if the model cannot be loaded, or as `mine_negatives`.
    """
    queries, answers = pairs["query"][:], pairs["answer"][:]
    candidates: dict[int, str] = {}  # equal texts, white space around them apart, are one candidate
    for text in [*answers, *corpus]:
        candidates.setdefault(text_id(text), text)
    documents = list(candidates.values())
    if model:
        score, lowest = load_text_encoder(model, "model").score(queries, documents), -torch.inf
    else:
        score, lowest = Bm25(documents).score(queries), 0.0
    query_ids, answer_ids, ids = (torch.tensor([*map(text_id, some)]) for some in (queries, answers, documents))
    mined = mine_negatives(score, query_ids, answer_ids, ids, lowest_score=lowest, show_progress_bar=True, **settings)
    with without_progress_bars():
        for i, column in enumerate(mined.columns.T.tolist()):
            pairs = pairs.add_column(f"negative_{i}", [documents[number] for number in column])
    return pairs, mined


def check_output_file(path: str | Path) -> None:
    """Raises: InputError: if `write_pairs` does not write such a file."""
    if not str(path).endswith(OUTPUT_SUFFIXES):
        raise InputError(f"--output_file must end in {', '.join(OUTPUT_SUFFIXES)}, got {path}.")


@without_progress_bars()
def write_pairs(pairs: Dataset, path: Path) -> None:
    """Write a file that `load_data` reads. Raises: InputError: if its name ends in none of OUTPUT_SUFFIXES."""
    check_output_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pairs.to_parquet(path)
    else:
        pairs.to_json(path, force_ascii=False)


def describe_negatives(mined: Negatives, ranking: str, output_file: Path) -> str:
    """What mining found, and how to train with it."""
    rows, num_negatives = mined.columns.shape
    columns = " ".join(f"negative_{i}" for i in range(num_negatives))
    return (
        f"{rows:,} rows with {num_negatives} negatives each, by {ranking}: {output_file}\n"
        f"Left out as too close to the answer's score: {mined.num_filtered.float().mean():,.0f} texts a row. "
        f"Drawn at random, because the ranking found too few: {mined.num_random.sum():,} negatives.\n"
        f"Train with: --data {output_file} --negative_columns {columns}"
    )
