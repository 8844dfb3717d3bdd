"""Measures against numbers worked by hand."""

import math

import numpy as np
import pytest
from retrieval_setup import QRELS

from tinybert_hf.errors import import_extra
from tinybert_hf.measures import classification_measures, percentile_interval, ranking_measures, resampled_means


def test_the_right_answer_in_second_place() -> None:
    run = {"q1": {"d1": 0.5, "d2": 0.9}, "q2": {"d3": 0.9, "d1": 0.1}}
    values = ranking_measures(QRELS, run)
    assert values["nDCG@10"] == pytest.approx((1 / math.log2(3) + 1) / 2)
    assert values["RR@10"] == pytest.approx((1 / 2 + 1) / 2)


def test_a_query_without_results_counts_as_zero() -> None:
    assert ranking_measures(QRELS, {"q1": {"d1": 1.0}})["RR@10"] == pytest.approx(0.5)


def test_intervals_are_those_of_scipy() -> None:
    import scipy.stats  # here, since every process of the tests would import it

    values = np.random.default_rng(1).random((50, 2))
    interval = percentile_interval(resampled_means(values))[1]
    expected = scipy.stats.bootstrap((values[:, 1],), np.mean, method="percentile", rng=2).confidence_interval
    assert interval == pytest.approx(list(expected), abs=0.003)


def test_a_difference_is_taken_on_the_same_queries() -> None:
    values = np.random.default_rng(1).random(50)
    means = resampled_means(np.stack([values, values - 0.01], axis=1))
    low, high = percentile_interval(means[:, 0] - means[:, 1])
    assert (low, high) == pytest.approx((0.01, 0.01))  # although either mean has an interval of some 0.16


def test_f1_weighs_the_classes_equally() -> None:
    values = classification_measures([0, 0, 0, 1], [0, 0, 0, 0])
    assert values["accuracy"] == 0.75
    assert values["f1_macro"] == pytest.approx((6 / 7 + 0) / 2)


def test_a_missing_extra_is_named() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'tinybert_hf\[train\]'"):
        import_extra("no_such_module_of_ours")
