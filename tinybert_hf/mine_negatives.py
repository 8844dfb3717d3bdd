"""Hard negatives: texts that a ranking takes for the answer of a query, and that are not.

    python -m tinybert_hf.mine_negatives --data pairs.csv --output_file mined.jsonl.gz                    # by BM25
    python -m tinybert_hf.mine_negatives --data pairs.csv --output_file mined.jsonl.gz --model outputs/retrieval
    python -m tinybert_hf.mine_negatives --data pairs.csv --output_file mined.jsonl.gz --teacher FOLDER_OR_ID
    accelerate launch train_retrieval.py --data mined.jsonl.gz --negative_columns negative_0 negative_1 negative_2

The candidates are the answers of the other rows, and the texts of `--corpus`. A candidate that scores almost as high as
the row's own answer may be a right answer that nobody marked, so it is left out: only those up to (1 - margin) times the
answer's score are taken (TopK-PercPos of NV-Retriever, Moreira et al. 2024, arXiv:2407.15831).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from datasets import Dataset
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from .arguments import errors_as_messages
from .data import import_extra, load_data, select_columns, text_id, without_progress_bars
from .evaluation import load_sentence_transformer
from .losses import equal_entries
from .search import load_search_pipeline

QUERY_BLOCK = 256  # queries whose scores of all candidates are in memory together: 61 MB for 60,000 of them
OUTPUT_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")

Score = Callable[[slice], Tensor]  # rows -> (B, D) scores of their queries with every candidate


class Negatives(NamedTuple):
    """What mining found for N rows."""

    columns: Tensor  # (N, num_negatives) int64, numbers of candidates, the highest score first
    too_close: Tensor  # (N,) candidates that the margin kept away
    drawn: Tensor  # (N,) how many, the last ones of a row, were drawn at random for want of ranked ones


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
    the margin only where nothing else is left), so that every row has as many; `drawn` counts them.

    Memory: QUERY_BLOCK x D scores, whatever N is.

    Args:
        score: rows -> (B, D) scores of their queries, fp32, on the device where the work is to be done; written into.
        query_ids: (N,) text ids (`data.text_id`); equal ones are the same query.
        answer_ids: (N,) text ids of the answers; each must be among the candidates.
        candidate_ids: (D,) text ids, all different.
        num_negatives: for each row.
        depth: choose at random among so many of the best; None takes the best.
        margin: a candidate whose score is above the answer's less `margin` times its absolute value is left out.
        lowest_score: a candidate that scores this or less was not found by the ranking (0 of BM25: no word in common).
        seed: of all that is random; the same arguments give the same negatives.
        show_progress_bar: draw a bar on standard error.

    Raises: ValueError: if a number is out of range, two candidates are one text, an answer is no candidate, or a query
        has fewer than `num_negatives` candidates that do not answer it.
    """
    num_candidates = len(candidate_ids)
    if num_negatives < 1:
        raise ValueError(f"num_negatives must be 1 or more, got {num_negatives}.")
    if depth is not None and depth < num_negatives:
        raise ValueError(f"depth must be num_negatives ({num_negatives}) or more, got {depth}.")
    if not 0 <= margin <= 1:
        raise ValueError(f"margin must be from 0 to 1, got {margin}.")
    ids = torch.cat((answer_ids.cpu(), candidate_ids.cpu())).unique(return_inverse=True)[1]
    answers, candidates = ids.tensor_split([len(answer_ids)])
    column_of = torch.full((int(max(answers.max(), candidates.max())) + 1,), -1)
    column_of[candidates] = torch.arange(num_candidates)
    if len(candidates.unique()) < num_candidates:
        raise ValueError("Two candidates have the same text id; pass each text once.")
    own = column_of[answers]  # (N,)
    if (own < 0).any():
        raise ValueError(f"{int((own < 0).sum())} answers are not among the candidates; add them.")

    # Which columns answer a query: one that is asked in many rows has many.
    queries = query_ids.cpu().unique(return_inverse=True)[1]
    right = (queries * num_candidates + own).unique()
    right_queries, right_columns = right // num_candidates, right % num_candidates
    num_right = torch.bincount(right_queries)
    if (left := num_candidates - int(num_right.max())) < num_negatives:
        raise ValueError(
            f"A query has {left} candidates that do not answer it, and num_negatives is {num_negatives}. Ask for "
            "fewer, or add a corpus."
        )

    generator = torch.Generator().manual_seed(seed)
    parts: list[Negatives] = []
    with tqdm(total=len(queries), unit="query", desc="Mining", disable=not show_progress_bar) as bar:
        for start in range(0, len(queries), QUERY_BLOCK):
            rows = slice(start, min(start + QUERY_BLOCK, len(queries)))
            askers, places = equal_entries(queries[rows], right_queries)
            answering = askers, right_columns[places]
            parts.append(
                select_negatives(
                    score(rows), own[rows], answering, num_negatives, depth, margin, lowest_score, generator
                )
            )
            bar.update(rows.stop - rows.start)
    return Negatives(*(torch.cat(column) for column in zip(*parts, strict=True)))


def select_negatives(
    scores: Tensor,
    own: Tensor,
    answering: tuple[Tensor, Tensor],
    num_negatives: int,
    depth: int | None,
    margin: float,
    lowest_score: float,
    generator: torch.Generator,
) -> Negatives:
    """`mine_negatives` for a block of rows; `own` (B,) columns, `answering` pairs of a row and a column."""
    device = scores.device
    answer_scores = scores.gather(1, own[:, None].to(device))  # (B, 1)
    scores[answering[0].to(device), answering[1].to(device)] = -torch.inf
    close = scores > answer_scores - margin * answer_scores.abs()
    too_close = close.sum(dim=1).cpu()
    best = scores.masked_fill_(close, -torch.inf).topk(min(depth or num_negatives, scores.shape[1]))
    values, columns = best.values.cpu(), best.indices.cpu()
    found = values > lowest_score
    if depth:
        chances = torch.rand(values.shape, generator=generator).masked_fill(~found, -1)
        chosen = chances.topk(num_negatives).indices.sort().values  # by score again
        columns, found = columns.gather(1, chosen), found.gather(1, chosen)
    drawn = num_negatives - found.sum(dim=1)
    short = drawn.nonzero().flatten()
    if len(short):
        chances = torch.rand((len(short), scores.shape[1]), generator=generator)
        chances -= close[short.to(device)].cpu().float()  # those above the margin come last
        of_short = torch.isin(answering[0], short)
        chances[torch.searchsorted(short, answering[0][of_short]), answering[1][of_short]] = -torch.inf
        taken, places = found[short].nonzero(as_tuple=True)
        chances[taken, columns[short][taken, places]] = -torch.inf
        columns[short] = torch.where(found[short], columns[short], spread(chances, found[short]))
    return Negatives(columns, too_close, drawn)


def spread(chances: Tensor, found: Tensor) -> Tensor:
    """The columns with the highest chances, the first of them at the first place that is not `found`; (B, num)."""
    best = chances.topk(found.shape[1]).indices
    return best.gather(1, ((~found).cumsum(dim=1) - 1).clamp_(min=0))


def mine_by_embeddings(
    query_embeddings: Tensor,
    answer_embeddings: Tensor,
    query_ids: Tensor,
    answer_ids: Tensor,
    num_negatives: int,
    depth: int | None = None,
    margin: float = 0.05,
    seed: int = 0,
) -> Negatives:
    """`mine_negatives` among the answers of the same rows, by cosine similarity; what training refreshes itself with.

    Args:
        query_embeddings: (N, H), any scale; the work is done on their device.
        answer_embeddings: (N, H), likewise; row i answers query i.
        query_ids: (N,) text ids.
        answer_ids: (N,) text ids.
        The others are those of `mine_negatives`.

    Returns: as `mine_negatives`; `columns` are row numbers of `answer_embeddings`. Of rows with one text, the first.

    Raises: as `mine_negatives`.
    """
    distinct, number = answer_ids.cpu().unique(return_inverse=True)
    first = torch.full_like(distinct, len(number))
    first.scatter_reduce_(0, number, torch.arange(len(number)), "amin")
    queries = nn.functional.normalize(query_embeddings.float(), dim=-1)
    candidates = nn.functional.normalize(answer_embeddings.float(), dim=-1)[
        first.to(answer_embeddings.device)
    ]

    def score(rows: slice) -> Tensor:
        return queries[rows] @ candidates.T

    mined = mine_negatives(score, query_ids, answer_ids, distinct, num_negatives, depth, margin, seed=seed)
    return mined._replace(columns=first[mined.columns])


def bm25_scores(queries: Sequence[str], candidates: Sequence[str]) -> Score:
    """Scores of `bm25s` with the defaults with which `evaluation` measures it."""
    bm25s = import_extra("bm25s")
    retriever = bm25s.BM25()
    retriever.index(bm25s.tokenize(list(candidates), show_progress=False), show_progress=False)
    words = bm25s.tokenize(list(queries), return_ids=False, show_progress=False)

    def score(rows: slice) -> Tensor:
        block = torch.zeros(rows.stop - rows.start, len(candidates))
        for i, query in enumerate(words[rows]):
            if query:  # without a word but stop words it finds nothing
                block[i] = torch.from_numpy(retriever.get_scores(query))
        return block

    return score


def model_scores(model: str, queries: Sequence[str], candidates: Sequence[str]) -> Score:
    """Cosine similarities by a model of ours.

    Raises: OSError: if it cannot be loaded.
    """
    pipeline = load_search_pipeline(model)
    candidate_embeddings = pipeline.encode(candidates, show_progress_bar=True).to(pipeline.device)
    query_embeddings = pipeline.encode(queries, show_progress_bar=True).to(pipeline.device)
    return lambda rows: query_embeddings[rows] @ candidate_embeddings.T


def teacher_scores(teacher: str, queries: Sequence[str], candidates: Sequence[str]) -> Score:
    """Similarities by a SentenceTransformer, with its own prompts and its own measure.

    Raises: OSError: if it cannot be loaded.
    """
    encoder = load_sentence_transformer(teacher, "teacher")
    encode = {"convert_to_tensor": True, "show_progress_bar": True}
    candidate_embeddings = encoder.encode_document(list(candidates), **encode)
    query_embeddings = encoder.encode_query(list(queries), **encode)
    return lambda rows: encoder.similarity(query_embeddings[rows], candidate_embeddings).float()


@dataclass
class MiningArguments:
    """What to mine, where, and by which ranking."""

    data: str = field(metadata={"help": "Pairs: a Hub id, a file or a folder."})
    output_file: str = field(
        metadata={"help": f"Where the pairs go with their negatives: {', '.join(OUTPUT_SUFFIXES)}."}
    )
    data_config: str | None = field(default=None, metadata={"help": "Configuration name of a Hub data set."})
    data_split: str = field(default="train", metadata={"help": "Split to read."})
    data_revision: str | None = field(
        default=None, metadata={"help": "Commit, tag or branch of a Hub data set."}
    )
    query_column: str = field(default="query", metadata={"help": "The column of the query."})
    answer_column: str = field(default="answer", metadata={"help": "The column of the text that answers it."})
    corpus: str | None = field(
        default=None,
        metadata={"help": "Further texts to choose from: a Hub id, a file or a folder. Not those of a test."},
    )
    corpus_column: str = field(default="text", metadata={"help": "The column of --corpus."})
    model: str | None = field(
        default=None, metadata={"help": "Rank with this model of ours, a folder or a Hub id; default: BM25."}
    )
    teacher: str | None = field(
        default=None, metadata={"help": "Rank with this SentenceTransformer, a folder or a Hub id."}
    )
    num_negatives: int = field(default=5, metadata={"help": "Negatives for each row."})
    depth: int | None = field(
        default=None, metadata={"help": "Choose at random among so many of the best; default: take the best."}
    )
    margin: float = field(
        default=0.05,
        metadata={"help": "Only texts that score up to (1 - margin) times what the row's own answer does."},
    )
    seed: int = field(default=0, metadata={"help": "Of what is chosen at random."})

    def __post_init__(self) -> None:
        if self.model and self.teacher:
            raise ValueError("--model and --teacher are two rankings; pass one of them, or none for BM25.")
        if not self.output_file.endswith(OUTPUT_SUFFIXES):
            raise ValueError(
                f"--output_file must end in {', '.join(OUTPUT_SUFFIXES)}, got {self.output_file}."
            )

    @property
    def ranking(self) -> str:
        return self.model or self.teacher or "BM25"


def mine_data(arguments: MiningArguments) -> tuple[Dataset, Negatives]:
    """The pairs as `query`, `answer`, `negative_0`, `negative_1`, ..., and what mining found.

    Raises:
        OSError: if the model cannot be loaded.
        ValueError: if the data cannot be read, a column is missing, or there are too few candidates.
    """
    read = partial(load_data, config=arguments.data_config, revision=arguments.data_revision)
    columns = {"query": arguments.query_column, "answer": arguments.answer_column}
    flags = {"query": "query_column", "answer": "answer_column"}
    pairs = select_columns(read(arguments.data, split=arguments.data_split), columns, arguments.data, flags)
    queries, answers = pairs["query"][:], pairs["answer"][:]
    texts = list(answers)
    if arguments.corpus:
        corpus = load_data(arguments.corpus)
        corpus = select_columns(
            corpus, {"text": arguments.corpus_column}, arguments.corpus, {"text": "corpus_column"}
        )
        texts += corpus["text"][:]
    candidates: dict[int, str] = {}  # equal texts, white space around them apart, are one candidate
    for text in texts:
        candidates.setdefault(text_id(text), text)

    documents = list(candidates.values())
    if arguments.model:
        score = model_scores(arguments.model, queries, documents)
    elif arguments.teacher:
        score = teacher_scores(arguments.teacher, queries, documents)
    else:
        score = bm25_scores(queries, documents)
    mined = mine_negatives(
        score,
        torch.tensor([text_id(text) for text in queries]),
        torch.tensor([text_id(text) for text in answers]),
        torch.tensor(list(candidates)),
        arguments.num_negatives,
        arguments.depth,
        arguments.margin,
        lowest_score=-torch.inf if arguments.model or arguments.teacher else 0.0,
        seed=arguments.seed,
        show_progress_bar=True,
    )
    with without_progress_bars():
        for i, column in enumerate(mined.columns.T.tolist()):
            pairs = pairs.add_column(f"negative_{i}", [documents[number] for number in column])
    return pairs, mined


def summary(arguments: MiningArguments, mined: Negatives) -> str:
    """What mining did, for a terminal."""
    rows, num_negatives = mined.columns.shape
    kept_away = mined.too_close.float()
    lines = [
        f"{rows:,} rows with {num_negatives} negatives each, by {arguments.ranking}: {arguments.output_file}",
        f"Left out as too close to the answer's score: {kept_away.median():,.0f} texts in the median row, "
        f"{kept_away.mean():,.0f} on average, some in {(kept_away > 0).float().mean():.0%} of the rows.",
    ]
    if drawn := int(mined.drawn.sum()):
        lines.append(
            f"Drawn at random, because the ranking found too few: {drawn:,} of {rows * num_negatives:,} negatives, in "
            f"{int((mined.drawn > 0).sum()):,} rows."
        )
    columns = " ".join(f"negative_{i}" for i in range(num_negatives))
    return "\n".join([*lines, f"Train with: --data {arguments.output_file} --negative_columns {columns}"])


@without_progress_bars()
def write(pairs: Dataset, path: Path) -> None:
    """Write a file that `load_data` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pairs.to_parquet(path)
    else:
        pairs.to_json(path, compression="gzip" if path.suffix == ".gz" else None, force_ascii=False)


def main() -> None:
    parser = HfArgumentParser(MiningArguments, prog="python -m tinybert_hf.mine_negatives")
    with errors_as_messages():
        (arguments,) = parser.parse_args_into_dataclasses()
        pairs, mined = mine_data(arguments)
        write(pairs, Path(arguments.output_file))
    print(summary(arguments, mined))


if __name__ == "__main__":
    main()
