"""How well a model ranks and classifies, through standard libraries.

    python -m tinybert_hf.evaluation --model FOLDER_OR_ID --data data/debian/test

measures a model and BM25 on a folder in BEIR layout (Thakur et al. 2021, arXiv:2104.08663): `corpus.jsonl`,
`queries.jsonl`, `qrels/test.tsv`. `--output_file` keeps the result as JSON; a model folder's
`evaluation_<name of the data>.json` is what the model card prints.
"""

import importlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from datasets import load_dataset
from torch import Tensor
from transformers import HfArgumentParser

from .arguments import errors_as_messages
from .losses import false_negatives, ranking_loss
from .search import load_search_pipeline

MEASURES = ("nDCG@10", "RR@10", "AP", "R@10", "R@100")  # in the notation of ir_measures; RR is MRR, AP is MAP
TOP_K = 100  # documents ranked for each query

Qrels = dict[str, dict[str, int]]
Run = dict[str, dict[str, float]]


class RetrievalData(NamedTuple):
    """Queries, the documents to rank, and which answer which (query id -> document id -> grade)."""

    queries: dict[str, str]
    corpus: dict[str, str]
    qrels: Qrels


def import_extra(module: str) -> ModuleType:
    """Import what measuring needs and loading and searching do not.

    Raises: ModuleNotFoundError: if it is not installed, with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}; measuring needs it: pip install 'tinybert_hf[train]'") from error


def load_beir(folder: str | Path, split: str = "test") -> RetrievalData:
    """Read a BEIR folder; only the queries that the split judges are kept.

    Raises:
        FileNotFoundError: if a file of the layout is missing.
        ValueError: if the split judges no query.
    """
    folder = Path(folder)
    files = {"corpus": folder / "corpus.jsonl", "queries": folder / "queries.jsonl"}
    files["qrels"] = folder / "qrels" / f"{split}.tsv"
    for path in files.values():
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is no BEIR folder: {path.relative_to(folder)} is missing.")
    corpus = load_dataset("json", data_files=str(files["corpus"]), split="train")
    queries = load_dataset("json", data_files=str(files["queries"]), split="train")
    judgements = load_dataset("csv", data_files=str(files["qrels"]), split="train", sep="\t")
    qrels: Qrels = {}
    for row in judgements:
        qrels.setdefault(str(row["query-id"]), {})[str(row["corpus-id"])] = int(row["score"])
    if not qrels:
        raise ValueError(f"{files['qrels']} judges no query.")
    return RetrievalData(
        queries={str(row["_id"]): row["text"] for row in queries if str(row["_id"]) in qrels},
        corpus={str(row["_id"]): f"{row.get('title') or ''} {row['text']}".strip() for row in corpus},
        qrels=qrels,
    )


def pairs_as_retrieval(queries: Sequence[str], answers: Sequence[str]) -> RetrievalData:
    """Pairs of texts as a retrieval task: every query against all distinct answers."""
    documents = {text: f"d{i}" for i, text in enumerate(dict.fromkeys(answers))}
    questions = {text: f"q{i}" for i, text in enumerate(dict.fromkeys(queries))}
    qrels: Qrels = {}
    for query, answer in zip(queries, answers, strict=True):
        qrels.setdefault(questions[query], {})[documents[answer]] = 1
    return RetrievalData(
        queries={i: text for text, i in questions.items()},
        corpus={i: text for text, i in documents.items()},
        qrels=qrels,
    )


def rank(query_ids: Sequence[str], document_ids: Sequence[str], scores: Tensor) -> Run:
    """The `TOP_K` best documents of each query from a (queries, documents) score matrix."""
    best = scores.topk(min(TOP_K, len(document_ids)))
    return {
        query_id: {document_ids[i]: score for i, score in zip(indices, values, strict=True)}
        for query_id, indices, values in zip(
            query_ids, best.indices.tolist(), best.values.tolist(), strict=True
        )
    }


def ranking_measures(qrels: Qrels, run: Run, measures: Sequence[str] = MEASURES) -> dict[str, float]:
    """Mean over the queries of each measure, computed by `ir_measures`; a query without results counts as 0."""
    ir_measures = import_extra("ir_measures")
    parsed = {ir_measures.parse_measure(name): name for name in measures}
    values = ir_measures.calc_aggregate(parsed, qrels, run)
    return {name: float(values[measure]) for measure, name in parsed.items()}


def evaluate_pairs(
    queries: Sequence[str],
    answers: Sequence[str],
    embed: Callable[[Sequence[str]], Tensor],
    temperature: float,
) -> dict[str, float]:
    """Loss in batches of 32, and how every query ranks all the distinct answers.

    Args:
        queries: N texts; row i is answered by row i of `answers`.
        embed: texts -> (texts, H) fp32, rows of length 1.
        temperature: of the loss.
    """
    data = pairs_as_retrieval(queries, answers)
    query_embeddings = embed(list(data.queries.values()))
    document_embeddings = embed(list(data.corpus.values()))
    run = rank(list(data.queries), list(data.corpus), query_embeddings @ document_embeddings.T)
    query_rows = {text: row for row, text in enumerate(data.queries.values())}
    document_rows = {text: row for row, text in enumerate(data.corpus.values())}
    query_ids = torch.tensor([query_rows[text] for text in queries])
    answer_ids = torch.tensor([document_rows[text] for text in answers])
    loss = in_batch_loss(
        query_embeddings[query_ids], document_embeddings[answer_ids], query_ids, answer_ids, temperature
    )
    return {"loss": loss, **ranking_measures(data.qrels, run, ("nDCG@10", "RR@10"))}


def in_batch_loss(
    query_embeddings: Tensor,
    answer_embeddings: Tensor,
    query_ids: Tensor,
    answer_ids: Tensor,
    temperature: float,
    batch_size: int = 32,
) -> float:
    """Ranking loss of held-out pairs in fixed batches, in nats: ln(32) = 3.47 is chance, whatever training did.

    Args:
        query_embeddings: (N, H); row i is answered by row i of `answer_embeddings`, (N, H).
        query_ids: (N,) numbers, likewise `answer_ids`; equal ones are the same text, no negatives of each other.
        batch_size: pairs ranked against each other; the last N % batch_size are left out.

    Raises: ValueError: if there are fewer pairs than `batch_size`.
    """
    if len(query_embeddings) < batch_size:
        raise ValueError(
            f"The held-out loss needs {batch_size} pairs or more, got {len(query_embeddings)}. Hold out more."
        )
    losses = []
    for start in range(0, len(query_embeddings) - batch_size + 1, batch_size):
        rows = slice(start, start + batch_size)
        ignored = false_negatives(query_ids[rows], query_ids[rows], answer_ids[rows], answer_ids[rows])
        ignored.fill_diagonal_(False)
        own = torch.arange(batch_size)
        losses.append(
            ranking_loss(query_embeddings[rows], answer_embeddings[rows], own, ignored, temperature)
        )
    return torch.stack(losses).mean().item()


def classification_measures(labels: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    """Accuracy, and F1 averaged over the classes with equal weight, computed by scikit-learn."""
    metrics = import_extra("sklearn.metrics")
    return {
        "accuracy": float(metrics.accuracy_score(labels, predictions)),
        "f1_macro": float(metrics.f1_score(labels, predictions, average="macro")),
    }


def bm25_run(data: RetrievalData) -> Run:
    """Rank with BM25: the defaults of `bm25s` (Lucene's formula, k1 1.5, b 0.75, English stop words)."""
    bm25s = import_extra("bm25s")
    retriever = bm25s.BM25()
    retriever.index(bm25s.tokenize(list(data.corpus.values()), show_progress=False), show_progress=False)
    document_ids = list(data.corpus)
    documents, scores = retriever.retrieve(
        bm25s.tokenize(list(data.queries.values()), show_progress=False),
        k=min(TOP_K, len(document_ids)),
        show_progress=False,
    )
    return {
        query_id: {document_ids[i]: float(score) for i, score in zip(indices, values, strict=True)}
        for query_id, indices, values in zip(data.queries, documents, scores, strict=True)
    }


@dataclass
class EvaluationArguments:
    """What to measure, and on what."""

    model: str = field(metadata={"help": "A model folder or a Hub id."})
    data: str = field(metadata={"help": "A folder in BEIR layout."})
    split: str = field(default="test", metadata={"help": "Which qrels/<split>.tsv to judge by."})
    output_file: str | None = field(default=None, metadata={"help": "Also write the result here, as JSON."})


def evaluate_model(arguments: EvaluationArguments) -> dict[str, Any]:
    """Measure a model and BM25 on a BEIR folder; the result is what the model card prints."""
    data = load_beir(arguments.data, arguments.split)
    pipeline = load_search_pipeline(arguments.model)
    started = time.perf_counter()
    document_embeddings = pipeline.encode(list(data.corpus.values()), show_progress_bar=True)
    query_embeddings = pipeline.encode(list(data.queries.values()))
    seconds = time.perf_counter() - started
    run = rank(list(data.queries), list(data.corpus), query_embeddings @ document_embeddings.T)
    return {
        "command": f"python -m tinybert_hf.evaluation --model {arguments.model} --data {arguments.data}"
        + (f" --split {arguments.split}" if arguments.split != "test" else ""),
        "data": arguments.data,
        "split": arguments.split,
        "queries": len(data.queries),
        "documents": len(data.corpus),
        "encode_seconds": round(seconds, 1),
        "results": {
            "model": ranking_measures(data.qrels, run),
            "BM25": ranking_measures(data.qrels, bm25_run(data)),
        },
    }


def main() -> None:
    parser = HfArgumentParser(EvaluationArguments, prog="python -m tinybert_hf.evaluation")
    (arguments,) = parser.parse_args_into_dataclasses()
    with errors_as_messages():
        result = evaluate_model(arguments)
    print(f"{result['queries']} queries, {result['documents']} documents of {result['data']}")
    print(f"{'':8}" + "".join(f"{name:>9}" for name in MEASURES))
    for system, values in result["results"].items():
        print(f"{system:8}" + "".join(f"{values[name]:9.3f}" for name in MEASURES))
    if arguments.output_file:
        Path(arguments.output_file).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
