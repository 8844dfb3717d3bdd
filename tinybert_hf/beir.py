"""Retrieval data in BEIR layout (Thakur et al. 2021, arXiv:2104.08663): a folder, or a data set of the Hub.

A folder has `corpus.jsonl`, `queries.jsonl` and `qrels/test.tsv`. On the Hub, the layouts of BeIR/nfcorpus,
mteb/nfcorpus and zeta-alpha-ai/NanoNFCorpus are read.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset, get_dataset_config_names

from .data import load_data, without_progress_bars
from .errors import InputError, MissingFileError
from .reading import Row, Written, read_rows

Qrels = dict[str, dict[str, int]]  # query id -> document id -> grade
PAIR_COLUMNS = ("query", "answer")


class RetrievalData(NamedTuple):
    """Queries and the documents to rank (id -> text), and which answer which."""

    queries: dict[str, str]
    corpus: dict[str, str]
    qrels: Qrels


@without_progress_bars()
def load_beir(data: str | Path, split: str = "test") -> RetrievalData:
    """Read a BEIR folder or such a data set of the Hub; only the queries that the split judges are kept.

    Raises:
        MissingFileError: if a file of the folder is missing.
        InputError: if the Hub data set or the split cannot be read, or the split judges no query, or one without text.
    """
    corpus, queries, judgements = beir_folder(Path(data), split) if Path(data).is_dir() else beir_hub(data, split)
    qrels: Qrels = {}
    for row in judgements:
        qrels.setdefault(str(row["query-id"]), {})[str(row["corpus-id"])] = int(row.get("score", 1))
    if not qrels:
        raise InputError(f"The split {split} of {data} has no relevance judgements.")
    texts = {str(row["_id"]): row["text"] for row in queries}
    if missing := set(qrels) - set(texts):
        raise InputError(f"The split {split} of {data} judges {len(missing)} unknown queries, such as {min(missing)}.")
    documents = {str(row["_id"]): f"{row.get('title') or ''} {row['text']}".strip() for row in corpus}
    return RetrievalData({query_id: texts[query_id] for query_id in qrels}, documents, qrels)


def beir_folder(folder: Path, split: str) -> tuple[Iterable[Row], Iterable[Row], list[Row]]:
    """Corpus, queries and judgements of a folder."""
    corpus, queries, qrels = (folder / file for file in ("corpus.jsonl", "queries.jsonl", f"qrels/{split}.tsv"))
    for path in (corpus, queries, qrels):
        if not path.is_file():
            raise MissingFileError(f"{folder} is no BEIR folder: {path.relative_to(folder)} is missing.")
    judgements = list(read_rows(qrels, written=Written(separator="\t")))
    if judgements and not {"query-id", "corpus-id", "score"} <= judgements[0].keys():
        raise InputError(f"{qrels} must begin with the line query-id, corpus-id, score, with tabs between.")
    return read_rows(corpus, {"_id", "text"}), read_rows(queries, {"_id", "text"}), judgements


def beir_hub(data: str | Path, split: str) -> tuple[Dataset, Dataset, Dataset]:
    """Corpus, queries and judgements of a Hub data set.

    NanoBEIR keeps the judgements in the configuration `qrels` (without grades, in the split train), MTEB in `default`,
    BEIR in a data set of their own, `<data>-qrels`.
    """
    corpus, queries = (load_data(str(data), config, "all") for config in ("corpus", "queries"))
    configs = get_dataset_config_names(str(data))
    judging = next((config for config in ("qrels", "default") if config in configs), None)
    return corpus, queries, load_data(str(data) if judging else f"{data}-qrels", judging, split)


def pairs_as_retrieval(queries: Sequence[str], answers: Sequence[str], others: Sequence[str] = ()) -> RetrievalData:
    """Pairs of texts as a retrieval task: every query against all distinct answers, and `others`.

    >>> pairs_as_retrieval(["how", "why", "how"], ["so", "so", "thus"]).qrels
    {'q0': {'d0': 1, 'd1': 1}, 'q1': {'d0': 1}}
    """
    documents = {text: f"d{i}" for i, text in enumerate(dict.fromkeys([*answers, *others]))}
    questions = {text: f"q{i}" for i, text in enumerate(dict.fromkeys(queries))}
    qrels: Qrels = {}
    for query, answer in zip(queries, answers, strict=True):
        qrels.setdefault(questions[query], {})[documents[answer]] = 1
    return RetrievalData({i: text for text, i in questions.items()}, {i: text for text, i in documents.items()}, qrels)
