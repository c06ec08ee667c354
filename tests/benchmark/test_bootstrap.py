"""Every metric of every resample against the scalar functions on the images that were drawn."""

import numpy as np
import pytest

from offmap.benchmark import bootstrap, metrics
from offmap.benchmark.bootstrap import METRICS, draws, interval, replicates


def scores(ties: bool, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    own, other = rng.normal(size=37), rng.normal(0.8, 1.2, size=23)
    return (np.round(own), np.round(other)) if ties else (own, other)


@pytest.mark.parametrize("ties", [False, True])
def test_a_resample_has_the_metrics_of_its_images(ties: bool) -> None:
    own, other = scores(ties)
    a, b = draws("own", len(own), repeats=25), draws("other", len(other), repeats=25)
    found = replicates(own, other, a, b)
    for i in range(25):
        drawn = np.repeat(own, a[i].astype(int)), np.repeat(other, b[i].astype(int))
        for name in METRICS:
            assert found[name][i] == pytest.approx(getattr(metrics, name)(*drawn), abs=1e-12), name


def test_draws_depend_on_the_set_and_not_on_who_asks() -> None:
    assert np.array_equal(draws("a", 40, repeats=3), draws("a", 40, repeats=3))
    assert not np.array_equal(draws("a", 40, repeats=3), draws("b", 40, repeats=3))
    assert not np.array_equal(draws("a", 40, repeats=3), draws("a", 40, repeats=3, seed=1))
    assert (draws("a", 40, repeats=3).sum(axis=1) == 40).all()


def test_images_of_one_patient_are_drawn_together() -> None:
    found = draws("a", 6, repeats=50, patients=["p", "q", "p", "", "", "q"])
    assert np.array_equal(found[:, 0], found[:, 2])
    assert np.array_equal(found[:, 1], found[:, 5])
    assert not np.array_equal(found[:, 3], found[:, 4])
    assert (found[:, [0, 1, 3, 4]].sum(axis=1) == 4).all()


def test_a_resample_without_one_kind_has_no_value_and_the_interval_leaves_it_out() -> None:
    own, other = scores(False)
    a, b = draws("own", len(own), repeats=20), draws("other", len(other), repeats=20)
    b[0] = 0
    found = replicates(own, other, a, b)
    assert all(np.isnan(found[name][0]) for name in METRICS)
    low, high = interval(found)["auroc"]
    assert 0 < low < high <= 1
    assert all(np.isnan(end) for end in interval({"auroc": np.full(3, np.nan)})["auroc"])


def test_the_interval_covers_the_true_area() -> None:
    rng = np.random.default_rng(3)
    truth, hits = 0.7602, 0
    for i in range(100):
        own, other = rng.normal(size=60), rng.normal(1.0, 1.0, size=60)
        found = replicates(own, other, draws(f"own{i}", 60, repeats=200), draws(f"other{i}", 60, repeats=200))
        low, high = interval(found)["auroc"]
        hits += low <= truth <= high
    assert hits >= 88


def test_large_sets_are_resampled_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    own, other = rng.normal(size=30), rng.normal(1, 1, size=20)
    counts = bootstrap.draws("own", 30, repeats=17), bootstrap.draws("other", 20, repeats=17)
    whole = bootstrap.replicates(own, other, *counts)
    looked: list[int] = []
    real = bootstrap._Ladder.of
    monkeypatch.setattr(bootstrap, "CELLS", 200)
    monkeypatch.setattr(bootstrap._Ladder, "of", lambda *parts: looked.append(len(parts[2])) or real(*parts))
    portions = bootstrap.replicates(own, other, *counts)
    assert max(looked) * 50 <= 200
    for name in bootstrap.METRICS:
        np.testing.assert_allclose(portions[name], whole[name], rtol=1e-12)
