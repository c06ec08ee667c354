"""Accuracy without labels against formulas by hand, scikit-learn, and the truth on a shift that each estimate can and cannot follow."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from offmap.core.errors import ConfigError
from offmap.core.resampling import Resampling
from offmap.shift.performance import Labelled, Unlabelled, by_confidence, by_probability

FEW = Resampling(repeats=200)


def labelled(confidence: np.ndarray, right: np.ndarray) -> Labelled:
    return Labelled(confidence.astype(float), right.astype(float), np.arange(len(right)))


def unlabelled(confidence: np.ndarray) -> Unlabelled:
    return Unlabelled(confidence.astype(float), np.arange(len(confidence)))


def calibrated(rng: np.random.Generator, n: int, *, easy: float) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of the answer in (0.5, 1) that are right as often as they say."""
    confidence = 0.5 + 0.5 * rng.beta(easy, 1, n)
    return confidence, (rng.uniform(size=n) < confidence).astype(float)


def test_thresholded_confidence_by_hand() -> None:
    own = labelled(np.array([1, 2, 3, 4, 5, 6, 7, 8.0]), np.array([0, 1, 0, 1, 1, 1, 1, 1]))
    new = unlabelled(np.array([0, 2.9, 3, 3.5, 9.0]))
    assert by_confidence(own, new, resampling=FEW)["average_threshold_confidence"].value == pytest.approx(3 / 5)
    perfect = labelled(np.arange(6.0), np.ones(6))
    found = by_confidence(perfect, new, resampling=FEW)
    assert found["average_threshold_confidence"].value == 1.0
    assert np.isnan(found["error_regression"].value)
    assert by_confidence(labelled(np.arange(6.0), np.zeros(6)), new, resampling=FEW)["average_threshold_confidence"].value == 0.0


def test_thresholded_confidence_with_ties_takes_the_nearest_share() -> None:
    own = labelled(np.array([1, 1, 1, 2, 2, 2.0]), np.array([0, 0, 1, 1, 1, 1]))
    found = by_confidence(own, unlabelled(np.array([1, 2, 2, 2.0])), resampling=FEW)
    assert found["average_threshold_confidence"].value == pytest.approx(3 / 4)


def test_averages_by_hand() -> None:
    own = labelled(np.array([0.9, 0.8, 0.7, 0.6]), np.array([1, 1, 0, 1]))
    found = by_probability(own, unlabelled(np.array([0.7, 0.6])), resampling=FEW)
    assert found["average_confidence"].value == pytest.approx(0.65)
    assert found["difference_of_confidences"].value == pytest.approx(0.75 + (0.65 - 0.75))


def test_regression_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    confidence, right = calibrated(rng, 300, easy=2)
    new = 0.5 + 0.5 * rng.uniform(size=80)
    z = ((confidence - confidence.mean()) / confidence.std())[:, None]
    model = LogisticRegression(C=1.0, tol=1e-10, max_iter=1000).fit(z, right)
    truth = model.predict_proba(((new - confidence.mean()) / confidence.std())[:, None])[:, 1].mean()
    found = by_confidence(labelled(confidence, right), unlabelled(new), resampling=FEW)
    assert found["error_regression"].value == pytest.approx(truth, abs=1e-6)


def test_regression_survives_a_confidence_that_separates() -> None:
    own = labelled(np.r_[np.zeros(20), np.ones(80)], np.r_[np.zeros(20), np.ones(80)])
    found = by_confidence(own, unlabelled(np.r_[np.zeros(50), np.ones(50), [-1e9, 1e9]]), resampling=FEW)
    assert found["error_regression"].value == pytest.approx(0.5, abs=0.06)


def test_estimates_find_the_accuracy_of_harder_images_whose_probabilities_are_right() -> None:
    """The interval holds the truth about as often as it says, when confidence means the same on both sides."""
    rng = np.random.default_rng(1)
    hits = {"average_threshold_confidence": 0, "error_regression": 0, "average_confidence": 0, "difference_of_confidences": 0}
    for _ in range(60):
        own, new = labelled(*calibrated(rng, 400, easy=4)), unlabelled(calibrated(rng, 400, easy=1.5)[0])
        truth = 0.5 + 0.5 * 1.5 / 2.5
        for found in (by_confidence(own, new, resampling=FEW), by_probability(own, new, resampling=FEW)):
            for name, estimate in found.items():
                hits[name] += estimate.low <= truth <= estimate.high
    assert all(hits[name] >= 0.8 * 60 for name in ("error_regression", "average_confidence", "difference_of_confidences")), hits
    assert hits["average_threshold_confidence"] < 0.5 * 60, "its threshold is biased when the spread of difficulty changes"


def test_known_failure_a_surer_network_on_a_new_site_is_believed() -> None:
    rng = np.random.default_rng(2)
    own = labelled(*calibrated(rng, 500, easy=4))
    sure_and_wrong = unlabelled(np.full(500, 0.99))
    assert by_probability(own, sure_and_wrong, resampling=FEW)["difference_of_confidences"].low > 0.95


def test_images_that_were_not_assessed_count_as_wrong() -> None:
    rng = np.random.default_rng(3)
    own = labelled(*calibrated(rng, 300, easy=4))
    new = calibrated(rng, 100, easy=4)[0]
    half = np.r_[new, np.full(100, -np.inf)]
    whole, broken = (by_confidence(own, unlabelled(v), resampling=FEW) for v in (new, half))
    for name in whole:
        assert broken[name].value == pytest.approx(whole[name].value / 2)
    not_seen = labelled(np.full(4, -np.inf), np.array([0, 1, 0, 1]))
    assert np.isnan(by_confidence(not_seen, unlabelled(new), resampling=FEW)["error_regression"].value)


def test_bins_of_many_images_give_the_intervals_of_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    own, new = labelled(*calibrated(rng, 10_500, easy=4)), unlabelled(calibrated(rng, 2_000, easy=1.5)[0])
    binned = by_confidence(own, new, resampling=FEW) | by_probability(own, new, resampling=FEW)
    monkeypatch.setattr("offmap.shift.performance.LARGE", 10**9)
    exact = by_confidence(own, new, resampling=FEW) | by_probability(own, new, resampling=FEW)
    for name, one in exact.items():
        assert binned[name].value == one.value
        slack = 0.3 * (one.high - one.low)
        assert binned[name].low == pytest.approx(one.low, abs=slack)
        assert binned[name].high == pytest.approx(one.high, abs=slack)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="0 confidences"):
        unlabelled(np.array([]))
    with pytest.raises(ConfigError, match="1 of them NaN"):
        unlabelled(np.array([0.5, np.nan]))
    with pytest.raises(ConfigError, match="0 or 1"):
        labelled(np.ones(2), np.array([0.5, 1]))
    with pytest.raises(ConfigError, match=r"in \[0, 1\]"):
        by_probability(labelled(np.array([3.0, 4.0]), np.ones(2)), unlabelled(np.array([0.5])), resampling=FEW)
