"""How good a ranking or a classification is, computed by standard libraries; and how sure that is."""

from collections.abc import Sequence

import numpy as np

from .beir import Qrels
from .errors import import_extra
from .ranking import Run

# In the notation of ir_measures, and what their means over the queries are called.
MEASURES = {"nDCG@10": "nDCG@10", "RR@10": "MRR@10", "AP": "MAP", "R@10": "Recall@10", "R@100": "Recall@100"}
RESAMPLES = 10_000  # of the queries, for confidence intervals


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


def classification_measures(labels: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    """Accuracy, and F1 averaged over the classes with equal weight, computed by scikit-learn."""
    metrics = import_extra("sklearn.metrics")
    return {
        "accuracy": float(metrics.accuracy_score(labels, predictions)),
        "f1_macro": float(metrics.f1_score(labels, predictions, average="macro")),
    }


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
