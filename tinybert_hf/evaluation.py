"""How well a model ranks and classifies, through standard libraries.

    python -m tinybert_hf.evaluation --model FOLDER_OR_ID --data data/debian/test

measures a model, BM25, and the two fused, on a folder in BEIR layout (Thakur et al. 2021, arXiv:2104.08663):
`corpus.jsonl`, `queries.jsonl`, `qrels/test.tsv`; or on a data set of the Hub in the layout of BeIR/nfcorpus,
mteb/nfcorpus or zeta-alpha-ai/NanoNFCorpus. `--baselines` adds SentenceTransformer models. `--output_file` keeps the
result as JSON; a model folder's `evaluation_<name of the data>.json` is what the model card prints.
"""

import csv
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset, get_dataset_config_names, load_dataset
from torch import Tensor
from transformers import HfArgumentParser

from .arguments import errors_as_messages
from .data import import_extra, load_data, without_progress_bars
from .losses import false_negatives, ranking_loss
from .search import FUSED, fuse_scores, load_search_pipeline

# In the notation of ir_measures, and what their means over the queries are called.
MEASURES = {"nDCG@10": "nDCG@10", "RR@10": "MRR@10", "AP": "MAP", "R@10": "Recall@10", "R@100": "Recall@100"}
TOP_K = FUSED  # documents ranked for each query
RESAMPLES = 10_000  # of the queries, for confidence intervals
MODEL, BM25 = "model", "BM25"  # what results call these two

Qrels = dict[str, dict[str, int]]
Run = dict[str, dict[str, float]]  # query id -> document id -> score, best first


class RetrievalData(NamedTuple):
    """Queries, the documents to rank, and which answer which (query id -> document id -> grade)."""

    queries: dict[str, str]
    corpus: dict[str, str]
    qrels: Qrels


@without_progress_bars()
def load_beir(data: str | Path, split: str = "test") -> RetrievalData:
    """Read a BEIR folder or such a data set of the Hub; only the queries that the split judges are kept.

    Raises:
        FileNotFoundError: if a file of the folder is missing.
        ValueError: if the Hub data set or the split cannot be read, or the split judges no query, or one without text.
    """
    corpus, queries, judgements = (
        beir_folder(Path(data), split) if Path(data).is_dir() else beir_hub(data, split)
    )
    qrels: Qrels = {}
    for row in judgements:
        qrels.setdefault(str(row["query-id"]), {})[str(row["corpus-id"])] = int(row.get("score", 1))
    if not qrels:
        raise ValueError(f"The split {split} of {data} judges no query.")
    texts = {str(row["_id"]): row["text"] for row in queries}
    if missing := set(qrels) - set(texts):
        raise ValueError(
            f"The split {split} of {data} judges {len(missing)} unknown queries, as {min(missing)}."
        )
    return RetrievalData(
        queries={query_id: texts[query_id] for query_id in qrels},
        corpus={str(row["_id"]): f"{row.get('title') or ''} {row['text']}".strip() for row in corpus},
        qrels=qrels,
    )


def beir_folder(folder: Path, split: str) -> tuple[Dataset, Dataset, list[dict[str, Any]]]:
    """Corpus, queries and judgements of a folder."""
    files = {"corpus": folder / "corpus.jsonl", "queries": folder / "queries.jsonl"}
    files["qrels"] = folder / "qrels" / f"{split}.tsv"
    for path in files.values():
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is no BEIR folder: {path.relative_to(folder)} is missing.")
    with files["qrels"].open(encoding="utf-8", newline="") as lines:
        # `datasets` would read the id 007 as a number.
        judgements = list(csv.DictReader(lines, delimiter="\t"))
    if judgements and not {"query-id", "corpus-id", "score"} <= judgements[0].keys():
        raise ValueError(
            f"{files['qrels']} must begin with the line query-id, corpus-id, score, with tabs between."
        )
    return (
        load_dataset("json", data_files=str(files["corpus"]), split="train"),
        load_dataset("json", data_files=str(files["queries"]), split="train"),
        judgements,
    )


def beir_hub(data: str | Path, split: str) -> tuple[Dataset, Dataset, Dataset]:
    """Corpus, queries and judgements of a Hub data set.

    NanoBEIR keeps the judgements in the configuration `qrels` (without grades, in the split train), MTEB in `default`,
    BEIR in a data set of their own, `<data>-qrels`.
    """
    corpus, queries = (load_data(str(data), config, "all") for config in ("corpus", "queries"))
    configs = get_dataset_config_names(str(data))
    judging = next((config for config in ("qrels", "default") if config in configs), None)
    judgements = load_data(str(data) if judging else f"{data}-qrels", judging, split)
    return corpus, queries, judgements


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


def measures_by_query(qrels: Qrels, run: Run, measures: Sequence[str]) -> np.ndarray:
    """Each measure of each judged query, (queries, measures), by `ir_measures`; a query without results has 0."""
    ir_measures = import_extra("ir_measures")
    rows = {query_id: row for row, query_id in enumerate(qrels)}
    columns = {ir_measures.parse_measure(name): column for column, name in enumerate(measures)}
    values = np.zeros((len(rows), len(columns)))
    for metric in ir_measures.iter_calc(list(columns), qrels, run):
        values[rows[metric.query_id], columns[metric.measure]] = metric.value
    return values


def ranking_measures(qrels: Qrels, run: Run, measures: Sequence[str] = tuple(MEASURES)) -> dict[str, float]:
    """Mean over the queries of each measure."""
    return dict(zip(measures, measures_by_query(qrels, run, measures).mean(axis=0).tolist(), strict=True))


def resampled_means(values: np.ndarray) -> np.ndarray:
    """Means over queries drawn anew, with replacement, `RESAMPLES` times: (queries, ...) -> (RESAMPLES, ...).

    What lies in one row is drawn together, so that differences between systems are those on the same queries.
    """
    generator = np.random.default_rng(0)
    draws = (generator.integers(len(values), size=len(values)) for _ in range(RESAMPLES))
    return np.stack([values[rows].mean(axis=0) for rows in draws])


def percentile_interval(means: np.ndarray) -> np.ndarray:
    """The middle 95% of resampled means, (RESAMPLES, ...) -> (..., 2): Efron's percentile bootstrap interval."""
    return np.moveaxis(np.percentile(means, (2.5, 97.5), axis=0), 0, -1)


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
        own = torch.arange(batch_size)
        ids = query_ids[rows], query_ids[rows], answer_ids[rows], answer_ids[rows]
        ignored = false_negatives(*ids, own)
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
    # bm25s fills up with documents that share no word with the query; they score 0.
    return {
        query_id: {document_ids[i]: float(s) for i, s in zip(indices, values, strict=True) if s > 0}
        for query_id, indices, values in zip(data.queries, documents, scores, strict=True)
    }


def model_runs(model: str, data: RetrievalData, truncate_dims: Sequence[int]) -> dict[str, tuple[Run, float]]:
    """Rank with a model of ours, and with the first dimensions of its embeddings; also the seconds, without loading.

    Raises: ValueError: if there are fewer dimensions.
    """
    pipeline = load_search_pipeline(model)
    width = pipeline.model.config.hidden_size
    if wrong := [dim for dim in truncate_dims if not 1 <= dim <= width]:
        raise ValueError(f"--truncate_dims must be from 1 to {width}, the width of {model}, got {wrong[0]}.")
    started = time.perf_counter()
    documents = pipeline.encode(list(data.corpus.values()), show_progress_bar=True)
    queries = pipeline.encode(list(data.queries.values()))
    seconds = time.perf_counter() - started
    runs = {}
    for name, dim in {MODEL: width, **{f"{MODEL}, {dim} dimensions": dim for dim in truncate_dims}}.items():
        parts = (torch.nn.functional.normalize(rows[:, :dim], dim=-1) for rows in (queries, documents))
        query_embeddings, document_embeddings = parts
        started = time.perf_counter()
        run = rank(list(data.queries), list(data.corpus), query_embeddings @ document_embeddings.T)
        runs[name] = (run, seconds + time.perf_counter() - started)
    return runs


def load_sentence_transformer(model: str, role: str) -> Any:
    """A SentenceTransformer from a folder or the Hub; `role` is what the message calls it.

    Raises: OSError: if it cannot be loaded.
    """
    sentence_transformers = import_extra("sentence_transformers")
    try:
        return sentence_transformers.SentenceTransformer(model)
    except (OSError, ValueError) as error:
        raise OSError(f"Could not load the {role} {model}: {error}") from error


def sentence_transformer_run(model: str, data: RetrievalData) -> tuple[Run, float]:
    """Rank with a SentenceTransformer, with its own prompts and similarity; also the seconds, without loading.

    Raises: OSError: if it cannot be loaded.
    """
    encoder = load_sentence_transformer(model, "baseline")
    started = time.perf_counter()
    document_embeddings = encoder.encode_document(
        list(data.corpus.values()), convert_to_tensor=True, show_progress_bar=True
    )
    query_embeddings = encoder.encode_query(
        list(data.queries.values()), convert_to_tensor=True, show_progress_bar=False
    )
    scores = encoder.similarity(query_embeddings, document_embeddings)
    run = rank(list(data.queries), list(data.corpus), scores)
    return run, time.perf_counter() - started


def fuse(bm25: Run, dense: Run) -> Run:
    """Both runs as one, as the hybrid search of an index does it (`search.fuse_scores`)."""
    fused = {name: fuse_scores(bm25.get(name, {}), dense.get(name, {})) for name in bm25 | dense}
    return {name: dict(islice(scores.items(), TOP_K)) for name, scores in fused.items()}


@dataclass
class EvaluationArguments:
    """What to measure, and on what."""

    model: str = field(metadata={"help": "A model folder or a Hub id."})
    data: str = field(metadata={"help": "A folder in BEIR layout, or the Hub id of such a data set."})
    split: str = field(
        default="test", metadata={"help": "Which judgements to use; NanoBEIR has the split train."}
    )
    baselines: list[str] | None = field(
        default=None, metadata={"help": "SentenceTransformer models to measure too: folders or Hub ids."}
    )
    truncate_dims: list[int] | None = field(
        default=None, metadata={"help": "Measure the first so many dimensions of the model's embeddings too."}
    )
    output_file: str | None = field(default=None, metadata={"help": "Also write the result here, as JSON."})

    @property
    def baseline_names(self) -> dict[str, str]:
        """Baselines by what results call them: the last two parts, as in a Hub id.

        Raises: ValueError: if two would be called the same.
        """
        names: dict[str, str] = {}
        for baseline in self.baselines or []:
            name = "/".join(Path(baseline).parts[-2:])
            if name in (*names, MODEL, BM25):
                raise ValueError(
                    f"Two systems would be called {name}: --baselines {baseline} needs another folder."
                )
            names[name] = baseline
        return names

    @property
    def command(self) -> str:
        command = f"python -m tinybert_hf.evaluation --model {self.model} --data {self.data}"
        if self.split != "test":
            command += f" --split {self.split}"
        if self.truncate_dims:
            command += " --truncate_dims " + " ".join(map(str, self.truncate_dims))
        return " ".join([command, *(["--baselines", *self.baselines] if self.baselines else [])])


def evaluate_model(arguments: EvaluationArguments) -> dict[str, Any]:
    """Measure a model, BM25, the baselines and their fusions with BM25; the model card prints the result.

    Of the result, `intervals` has [low, high] for each of the numbers in `results`, and `differences[a][b]` for the mean
    of a less that of b on the same queries. All are 95% bootstrap intervals over the queries.
    """
    names = arguments.baseline_names
    data = load_beir(arguments.data, arguments.split)
    started = time.perf_counter()
    bm25 = bm25_run(data)
    bm25_seconds = time.perf_counter() - started
    runs = model_runs(arguments.model, data, arguments.truncate_dims or [])
    runs[BM25] = (bm25, bm25_seconds)
    runs |= {name: sentence_transformer_run(baseline, data) for name, baseline in names.items()}
    for name in (MODEL, *names):
        run, seconds = runs[name]
        runs[fused(name)] = fuse(bm25, run), bm25_seconds + seconds
    values = np.stack(
        [measures_by_query(data.qrels, run, list(MEASURES)) for run, _ in runs.values()], axis=1
    )
    means = resampled_means(values)  # (RESAMPLES, systems, measures)
    systems = list(runs)
    texts = len(data.queries) + len(data.corpus)
    return {
        "command": arguments.command,
        "data": arguments.data,
        "split": arguments.split,
        "queries": len(data.queries),
        "documents": len(data.corpus),
        "texts_per_second": {name: round(texts / seconds, 1) for name, (_, seconds) in runs.items()},
        "results": by_name(systems, values.mean(axis=0)),
        "intervals": by_name(systems, percentile_interval(means)),
        "differences": {
            name: by_name(systems, percentile_interval(means[:, [systems.index(name)]] - means), without=name)
            for name in (MODEL, fused(MODEL))
        },
    }


def fused(name: str) -> str:
    """What results call the fusion of BM25 with a system."""
    return f"{BM25} + {name}"


def by_name(
    systems: Sequence[str], values: np.ndarray, without: str | None = None
) -> dict[str, dict[str, Any]]:
    """(systems, measures, ...) as system -> measure -> value, for JSON."""
    return {
        system: dict(zip(MEASURES, rows, strict=True))
        for system, rows in zip(systems, values.tolist(), strict=True)
        if system != without
    }


def result_table(result: dict[str, Any]) -> str:
    """The result for a terminal: systems down, measures across, each with half the width of its interval."""
    width = max(map(len, result["results"]))
    lines = [
        f"{result['data']} ({result['split']}): {result['queries']:,} queries, {result['documents']:,} documents",
        "",
        " " * width + "".join(f"{name:>15}" for name in MEASURES.values()) + f"{'texts/s':>10}",
    ]
    for system, values in result["results"].items():
        intervals = result["intervals"][system]
        cells = [
            f"{value:8.3f} ±{(intervals[name][1] - intervals[name][0]) / 2:.3f}"
            for name, value in values.items()
        ]
        lines.append(f"{system:{width}}{''.join(cells)}{result['texts_per_second'][system]:10,.0f}")
    lines += ["", "nDCG@10, difference on the same queries"]
    for name, others in result["differences"].items():
        for other, intervals in others.items():
            low, high = intervals["nDCG@10"]
            difference = result["results"][name]["nDCG@10"] - result["results"][other]["nDCG@10"]
            verdict = "above" if low > 0 else "below" if high < 0 else "undecided"
            pair = f"{name} vs {other}"
            lines.append(f"{pair:{2 * width + 4}} {difference:+.3f} [{low:+.3f}, {high:+.3f}]  {verdict}")
    return "\n".join([*lines, "", "± and [...]: 95% bootstrap intervals over the queries."])


def main() -> None:
    parser = HfArgumentParser(EvaluationArguments, prog="python -m tinybert_hf.evaluation")
    (arguments,) = parser.parse_args_into_dataclasses()
    with errors_as_messages():
        result = evaluate_model(arguments)
    print(result_table(result))
    if arguments.output_file:
        Path(arguments.output_file).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
