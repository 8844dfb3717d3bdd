"""How well a model ranks, beside BM25, other encoders, and the fusions of both kinds."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from timeit import timeit
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers.utils import CONFIG_NAME, cached_file

from .beir import PAIR_COLUMNS, RetrievalData, load_beir, pairs_as_retrieval
from .configuration_tinybert import TinyBertConfig
from .data import read_columns
from .encoding import SearchPipeline, load_search_pipeline
from .errors import InputError, import_extra
from .loading import loading
from .losses import false_negatives, ranking_loss
from .measures import MEASURES, measures_by_query, percentile_interval, ranking_measures, resampled_means
from .pipeline_tinybert import fuse_scores
from .ranking import Bm25, Run, Score, by_dot_product, fuse_runs, rank
from .reading import PLAINLY, Written

MODEL, BM25 = "model", "BM25"  # what results call these two
DEFAULTS = {"split": "test", "query_column": PAIR_COLUMNS[0], "answer_column": PAIR_COLUMNS[1]}  # of the command
Runs = dict[str, tuple[Run, float]]  # system -> how it ranks, and the seconds
RERANK_DEPTH = 20  # results of a search that may be ranked anew (docs/decisions.md, D54)
RERANK_WEIGHTS = (0.25, 0.5, 0.75, 1.0)  # what part of a score may be that of the tokens
LOSS_BATCH = 32  # pairs that the held-out loss ranks against each other


def evaluate_pairs(
    queries: Sequence[str],
    answers: Sequence[str],
    embed: Callable[[Sequence[str]], Tensor],
    temperature: float,
    others: Sequence[str] = (),
) -> dict[str, float]:
    """Loss in batches of 32, and how each query ranks all distinct answers and `others`; `embed` gives rows of length 1."""
    data = pairs_as_retrieval(queries, answers, others)
    query_embeddings = embed(list(data.queries.values()))
    document_embeddings = embed(list(data.corpus.values()))
    run = rank(list(data.queries), list(data.corpus), by_dot_product(query_embeddings, document_embeddings))
    # Their rows: texts are numbered in the order in which they come first.
    query_ids, answer_ids = (torch.from_numpy(pd.Series(some).factorize()[0]) for some in (queries, answers))
    embeddings = query_embeddings[query_ids], document_embeddings[answer_ids]
    loss = in_batch_loss(*embeddings, query_ids, answer_ids, temperature)
    return {"loss": loss, **ranking_measures(data.qrels, run, ("nDCG@10", "RR@10"))}


def in_batch_loss(
    query_embeddings: Tensor, answer_embeddings: Tensor, query_ids: Tensor, answer_ids: Tensor, temperature: float
) -> float:
    """Ranking loss of held-out pairs in fixed batches, in nats: ln(32) = 3.47 is chance, whatever training did.

    Fewer pairs are one batch; then the logarithm of their number is chance. What is left behind the last batch is left out.
    Embeddings are (N, H), ids (N,): equal ones are the same text.
    """
    batch_size = min(LOSS_BATCH, len(query_embeddings))
    own = torch.arange(batch_size)
    losses = []
    for start in range(0, len(query_embeddings) - batch_size + 1, batch_size):
        rows = slice(start, start + batch_size)
        ignored = false_negatives(query_ids[rows], query_ids[rows], answer_ids[rows], answer_ids[rows], own)
        losses.append(ranking_loss(query_embeddings[rows], answer_embeddings[rows], own, ignored, temperature))
    return torch.stack(losses).mean().item()


class TextEncoder(NamedTuple):
    """A model of ours or a SentenceTransformer, used in one way. The embeddings lie on the encoder's device."""

    encode_queries: Callable[[Sequence[str]], Tensor]  # texts -> (texts, H), with the model's own prompt
    encode_documents: Callable[[Sequence[str]], Tensor]
    similarity: Callable[[Tensor, Tensor], Tensor]  # (Q, H), (D, H) -> (Q, D)

    def score(self, queries: Sequence[str], documents: Sequence[str]) -> Score:
        """Encode all texts, the documents first; their similarities are computed block by block."""
        document_embeddings = self.encode_documents(documents)
        query_embeddings = self.encode_queries(queries)
        return lambda block: self.similarity(query_embeddings[block], document_embeddings)


def load_text_encoder(model: str) -> TextEncoder:
    """A tinybert model, or what `sentence_transformers` loads, with its own prompts and measure.

    Raises: UnreadableError: if it cannot be loaded.
    """
    with loading(model):
        # Not every SentenceTransformer has one.
        config = cached_file(model, CONFIG_NAME, _raise_exceptions_for_missing_entries=False)
        kind = TinyBertConfig.get_config_dict(model)[0].get("model_type") if config else None
        if kind != TinyBertConfig.model_type:
            encoder = import_extra("sentence_transformers").SentenceTransformer(model)
    if kind == TinyBertConfig.model_type:
        pipeline = load_search_pipeline(model)
        return TextEncoder(
            lambda texts: pipeline.encode_query(texts, show_progress_bar=True).to(pipeline.device),
            lambda texts: pipeline.encode_document(texts, show_progress_bar=True).to(pipeline.device),
            lambda queries, documents: queries @ documents.T,
        )
    options = {"convert_to_tensor": True, "show_progress_bar": True}
    queries, documents = partial(encoder.encode_query, **options), partial(encoder.encode_document, **options)
    return TextEncoder(queries, documents, encoder.similarity)


def evaluate_model(
    model: str,
    data: str,
    split: str = "test",
    baselines: Sequence[str] = (),
    truncate_dims: Sequence[int] = (),
    columns: tuple[str, str] = PAIR_COLUMNS,
    written: Written = PLAINLY,
    rerank: int = 0,
) -> dict[str, Any]:
    """Measure a model, BM25, the baselines and their fusions with BM25; the model card prints the result.

    Args:
        data: a folder in BEIR layout, the Hub id of such a data set, or a file of pairs.
        truncate_dims: measure the first so many dimensions of the model's embeddings too.
        columns: of a file of pairs: that of the query, that of the answer.
        rerank: measure too what ranking so many of the best anew by their tokens brings, and the milliseconds it takes.

    Returns: a mapping for JSON. Of it, `arguments` has those that are no defaults, `intervals` [low, high] for each of the
    numbers in `results`, and `differences[a][b]` for the mean of a less that of b on the same queries. All are 95%
    bootstrap intervals over the queries.

    Raises: InputError: if the data or a model cannot be read, or two systems would have one name.
    """
    flags = {"model": model, "data": data, "split": split, "query_column": columns[0], "answer_column": columns[1]}
    flags |= written._asdict() | {"rerank": rerank, "truncate_dims": [*truncate_dims], "baselines": [*baselines]}
    names = name_baselines(baselines)
    if Path(data).is_file():
        roles = dict(zip(PAIR_COLUMNS, columns, strict=True))
        rows = read_columns(data, roles, {role: f"{role}_column" for role in roles}, written=written)
        loaded = pairs_as_retrieval(rows["query"][:], rows["answer"][:])
    else:
        loaded = load_beir(data, split)
    started = time.perf_counter()
    bm25 = Bm25(list(loaded.corpus.values())).rank(loaded.queries, list(loaded.corpus))
    bm25_seconds = time.perf_counter() - started
    pipeline = load_search_pipeline(model)
    runs = run_model(pipeline, loaded, truncate_dims)
    runs[BM25] = bm25, bm25_seconds
    runs |= {name: run_baseline(baseline, loaded) for name, baseline in names.items()}
    for name in (MODEL, *names):
        run, seconds = runs[name]
        runs[f"{BM25} + {name}"] = fuse_runs(bm25, run), bm25_seconds + seconds
    milliseconds = measure_rerank(pipeline, loaded, runs, rerank) if rerank > 0 else {}
    values = np.stack([measures_by_query(loaded.qrels, run, list(MEASURES)) for run, _ in runs.values()], axis=1)
    means = resampled_means(values)  # (RESAMPLES, systems, measures)
    systems = list(runs)
    texts = len(loaded.queries) + len(loaded.corpus)
    return {
        "arguments": {name: value for name, value in flags.items() if value and value != DEFAULTS.get(name)},
        "data": data,
        "split": split,
        "queries": len(loaded.queries),
        "documents": len(loaded.corpus),
        "texts_per_second": {name: round(texts / seconds, 1) for name, (_, seconds) in runs.items()},
        "milliseconds_per_query": milliseconds,
        "results": by_name(systems, values.mean(axis=0)),
        "intervals": by_name(systems, percentile_interval(means)),
        "differences": {
            name: by_name(systems, percentile_interval(means[:, [systems.index(name)]] - means), [name])
            for name in (MODEL, f"{BM25} + {MODEL}")
        },
    }


def name_baselines(baselines: Sequence[str]) -> dict[str, str]:
    """Baselines by what results call them: the last two parts, as in a Hub id."""
    names: dict[str, str] = {}
    for baseline in baselines:
        name = "/".join(Path(baseline).parts[-2:])
        if name in (*names, MODEL, BM25):
            raise InputError(f"Two systems would be called {name}: rename the folder of --baselines {baseline}.")
        names[name] = baseline
    return names


def run_model(pipeline: SearchPipeline, data: RetrievalData, truncate_dims: Sequence[int], bar: bool = True) -> Runs:
    """Rank with a model of ours, and with the first dimensions of its embeddings; also the seconds."""
    width = pipeline.model.config.hidden_size
    if wrong := [dim for dim in truncate_dims if not 1 <= dim <= width]:
        raise InputError(f"--truncate_dims must be from 1 to {width}, the width of the embeddings, got {wrong[0]}.")
    started = time.perf_counter()
    documents = pipeline.encode_document(list(data.corpus.values()), show_progress_bar=bar)
    queries = pipeline.encode_query(list(data.queries.values()))
    seconds = time.perf_counter() - started
    runs = {}
    for name, dim in {MODEL: width, **{f"{MODEL}, {dim} dimensions": dim for dim in truncate_dims}}.items():
        parts = (torch.nn.functional.normalize(rows[:, :dim], dim=-1) for rows in (queries, documents))
        started = time.perf_counter()
        run = rank(list(data.queries), list(data.corpus), by_dot_product(*parts))
        runs[name] = run, seconds + time.perf_counter() - started
    return runs


def rank_anew(search: SearchPipeline, data: RetrievalData, run: Run, depth: int, weights: Sequence[float]) -> list[Run]:
    """The first `depth` of each query ranked anew, once for each weight that MaxSim may have beside the score of the run."""
    found = {query: run.get(query, {}) for query in data.queries}
    texts = [[data.corpus[document] for document in islice(hits, depth)] for hits in found.values()]
    maxsims = search.maxsim(list(data.queries.values()), texts)
    anew = [dict(zip(hits, scores, strict=False)) for hits, scores in zip(found.values(), maxsims, strict=True)]
    ranked = list(zip(found.items(), anew, strict=True))
    return [{query: fuse_scores(weight, scores, hits) for (query, hits), scores in ranked} for weight in weights]


def choose_rerank(pipeline: SearchPipeline, data: RetrievalData) -> dict[str, Any]:
    """`rerank_depth` and `rerank_weight` for a model's configuration, and the `results` of a search that obeys them.

    The weight is the best of RERANK_WEIGHTS. The depth is 0 unless the nDCG@10 rises by more than chance (95%).
    """
    run, _ = run_model(pipeline, data, (), bar=False)[MODEL]
    runs = [run, *rank_anew(pipeline, data, run, RERANK_DEPTH, RERANK_WEIGHTS)]
    before, *values = (measures_by_query(data.qrels, one, ["nDCG@10", "RR@10"]) for one in runs)
    best = int(np.argmax([rows[:, 0].mean() for rows in values]))
    pays = percentile_interval(resampled_means((values[best] - before)[:, 0]))[0] > 0
    chosen = {"rerank_depth": RERANK_DEPTH if pays else 0, "rerank_weight": RERANK_WEIGHTS[best]}
    return {**chosen, "results": dict(zip(("nDCG@10", "RR@10"), values[best].mean(axis=0).tolist(), strict=True))}


def measure_rerank(pipeline: SearchPipeline, data: RetrievalData, runs: Runs, depth: int) -> dict[str, float]:
    """Add those ranked anew to the runs. Returns milliseconds from a query to its embedding, and to its ranking."""
    for name in (MODEL, f"{BM25} + {MODEL}"):
        run, before = runs[name]
        started = time.perf_counter()
        (anew,) = rank_anew(pipeline, data, run, depth, [pipeline.model.config.rerank_weight])
        runs[f"{name} + MaxSim"] = anew, before + time.perf_counter() - started
    each = [RetrievalData({name: query}, data.corpus, {}) for name, query in islice(data.queries.items(), 20)]
    embedding = timeit(lambda: [pipeline.encode_query([*one.queries.values()]) for one in each], number=1)
    refining = timeit(lambda: [rank_anew(pipeline, one, runs[MODEL][0], depth, [0.5]) for one in each], number=1)
    taken = {MODEL: embedding, f"{MODEL} + MaxSim": embedding + refining}
    return {name: round(1000 * seconds / len(each), 1) for name, seconds in taken.items()}


def run_baseline(model: str, data: RetrievalData) -> tuple[Run, float]:
    """Rank with another encoder; also the seconds, without loading."""
    encoder = load_text_encoder(model)
    started = time.perf_counter()
    score = encoder.score(list(data.queries.values()), list(data.corpus.values()))
    return rank(list(data.queries), list(data.corpus), score), time.perf_counter() - started


def by_name(systems: Sequence[str], values: np.ndarray, without: Sequence[str] = ()) -> dict[Any, dict[str, Any]]:
    """(systems, measures, ...) as system -> measure -> value, for JSON."""
    return pd.DataFrame(values.tolist(), systems, list(MEASURES)).drop(index=[*without]).to_dict("index")


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
        cells = [f"{value:8.3f} ±{(intervals[name][1] - intervals[name][0]) / 2:.3f}" for name, value in values.items()]
        lines.append(f"{system:{width}}{''.join(cells)}{result['texts_per_second'][system]:10,.0f}")
    if milliseconds := result.get("milliseconds_per_query"):
        lines += ["", "ms a query: " + ", ".join(f"{name} {taken:,.1f}" for name, taken in milliseconds.items())]
    lines += ["", "nDCG@10, difference on the same queries"]
    for name, others in result["differences"].items():
        for other, intervals in others.items():
            low, high = intervals["nDCG@10"]
            difference = result["results"][name]["nDCG@10"] - result["results"][other]["nDCG@10"]
            verdict = "above" if low > 0 else "below" if high < 0 else "undecided"
            pair = f"{name} vs {other}"
            lines.append(f"{pair:{2 * width + 4}} {difference:+.3f} [{low:+.3f}, {high:+.3f}]  {verdict}")
    return "\n".join([*lines, "", "± and [...]: 95% bootstrap intervals over the queries."])
