"""Metrics against scikit-learn and counting by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from offmap.benchmark import metrics
from offmap.core.errors import ConfigError

SMALL = st.lists(st.integers(-5, 5), min_size=1, max_size=30).map(lambda v: np.array(v, dtype=np.float64))


@settings(max_examples=60, deadline=None)
@given(own=SMALL, other=SMALL)
def test_auroc_and_aupr_are_those_of_scikit_learn_with_ties(own: np.ndarray, other: np.ndarray) -> None:
    truth, scores = np.r_[np.zeros(len(own)), np.ones(len(other))], np.r_[own, other]
    assert metrics.auroc(own, other) == pytest.approx(roc_auc_score(truth, scores))
    assert metrics.aupr_out(own, other) == pytest.approx(average_precision_score(truth, scores))
    assert metrics.aupr_in(own, other) == pytest.approx(average_precision_score(1 - truth, -scores))


def test_fpr95_follows_both_conventions() -> None:
    own = np.arange(100.0)
    other = np.arange(60.0, 160.0)
    assert metrics.fpr95_ood_positive(own, other) == pytest.approx((own >= 65).mean())
    assert metrics.fpr95_id_positive(own, other) == pytest.approx((other <= 94).mean())
    assert metrics.fpr95_ood_positive(own, own + 1000) == metrics.fpr95_id_positive(own, own + 1000) == 0.0


@settings(max_examples=30, deadline=None)
@given(own=SMALL, other=SMALL, seed=st.integers(0, 99))
def test_a_replicate_is_the_auroc_of_the_drawn_images(own: np.ndarray, other: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = [metrics.resampled(len(scores), repeats=3, rng=rng) for scores in (own, other)]
    found = metrics.auroc_replicates(own, other, *counts)
    for value, a, b in zip(found, *counts, strict=True):
        assert value == pytest.approx(metrics.auroc(np.repeat(own, a.astype(int)), np.repeat(other, b.astype(int))), abs=1e-6)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        own, other = rng.normal(size=60), rng.normal(1.0, size=60)
        counts = [metrics.resampled(60, repeats=200, rng=rng) for _ in range(2)]
        low, high = metrics.interval(metrics.auroc_replicates(own, other, *counts))
        hits += low <= 0.7602 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_a_sample_without_one_kind_has_no_auroc() -> None:
    counts = np.array([[1.0, 0.0], [0.0, 0.0]], dtype=np.float32)
    found = metrics.auroc_replicates(np.array([0.0, 1.0]), np.array([2.0, 3.0]), counts, np.ones((2, 2), dtype=np.float32))
    assert found[0] == 1.0
    assert np.isnan(found[1])


@pytest.mark.parametrize("scores", [np.array([]), np.array([np.nan]), np.array([1.0, np.inf])])
def test_scores_that_cannot_be_compared_are_refused(scores: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="finite"):
        metrics.auroc(scores, np.ones(3))
    with pytest.raises(ConfigError, match="finite"):
        metrics.fpr95_id_positive(np.ones(3), scores)
