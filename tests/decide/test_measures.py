"""Intervals of failure prediction: coverage of the truth, patients, and samples without a failure."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from offmap.core.errors import ConfigError
from offmap.core.resampling import Resampling, units_of
from offmap.decide.measures import detection, measures

FEW = Resampling(repeats=200)


def sample(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Uniform confidence c that fails with probability (1 - c) / 2: error 1/4, AUGRC 1/12."""
    confidence = rng.uniform(size=n)
    return confidence, (rng.uniform(size=n) < (1 - confidence) / 2).astype(float)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    hits = {"error": 0, "augrc": 0, "risk_at_0.8": 0}
    truth = {"error": 0.25, "augrc": 1 / 12, "risk_at_0.8": 0.2}
    for _ in range(150):
        found = measures(*sample(rng, 200), coverages=(0.8,), resampling=FEW)
        for name in hits:
            hits[name] += found[name].low <= truth[name] <= found[name].high
    assert all(0.88 <= n / 150 <= 0.995 for n in hits.values()), hits


def test_images_of_one_patient_count_as_one() -> None:
    """Twenty copies of each of 30 images tell no more than the 30 images."""
    confidence, loss = sample(np.random.default_rng(1), 30)
    once = measures(confidence, loss, resampling=FEW)
    units = np.repeat(np.arange(30), 20)
    copied = measures(np.repeat(confidence, 20), np.repeat(loss, 20), units=units, resampling=FEW)
    alone = measures(np.repeat(confidence, 20), np.repeat(loss, 20), resampling=FEW)
    assert copied["error"] == once["error"]
    assert alone["error"].high - alone["error"].low < 0.4 * (once["error"].high - once["error"].low)
    assert units_of(["a", "", "a", "", "b"]).tolist() == [0, 1, 0, 2, 3]


def test_no_failure_seen_is_no_proof_of_none() -> None:
    found = measures(np.arange(40.0), np.zeros(40), coverages=(0.5,), resampling=FEW)
    assert (found["error"].value, found["error"].low) == (0.0, 0.0)
    assert found["error"].high == pytest.approx(1 - 0.025 ** (1 / 40))
    assert found["risk_at_0.5"].high == pytest.approx(1 - 0.025 ** (1 / 20))
    assert np.isnan(found["fail_auroc"].value)
    assert np.isnan(found["augrc"].high)
    every = measures(np.arange(40.0), np.ones(40), resampling=FEW)
    assert every["error"].low == pytest.approx(0.025 ** (1 / 40))


def test_chunks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    confidence, loss = sample(np.random.default_rng(2), 60)
    whole = measures(confidence, loss, resampling=FEW)
    monkeypatch.setattr("offmap.core.resampling._CELLS", 700)
    assert measures(confidence, loss, resampling=FEW) == whole


def test_detection_is_the_auroc_of_the_ood_images() -> None:
    rng = np.random.default_rng(3)
    confidence, ood = np.r_[rng.normal(1, 1, 60), rng.normal(0, 1, 40)].round(1), np.r_[np.zeros(60), np.ones(40)]
    found = detection(confidence, ood, units=np.arange(100), resampling=FEW)
    assert found.value == pytest.approx(roc_auc_score(ood, -confidence))
    assert found.low < found.value < found.high


@pytest.mark.parametrize(("repeats", "level"), [(10, 0.95), (200, 1.0)])
def test_refusals(repeats: int, level: float) -> None:
    with pytest.raises(ConfigError, match=rf"repeats = {repeats} .* level = {level}"):
        Resampling(repeats=repeats, level=level)


def test_bins_of_many_images_give_the_intervals_of_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    confidence, loss = sample(np.random.default_rng(4), 10_500)
    how = Resampling(repeats=300)
    binned = measures(confidence, loss, resampling=how)
    monkeypatch.setattr("offmap.decide.measures.LARGE", 10**9)
    exact = measures(confidence, loss, resampling=how)
    for name, one in exact.items():
        assert binned[name].value == one.value
        slack = 0.25 * (one.high - one.low)
        assert binned[name].low == pytest.approx(one.low, abs=slack)
        assert binned[name].high == pytest.approx(one.high, abs=slack)
