"""Bootstrap samples of images, of patients, and of bins of like images."""

import numpy as np
import pytest

from offmap.core.resampling import Binned, Resampling, independent, units_of


def test_every_sample_has_as_many_units_as_there_are() -> None:
    units = units_of(["a", "a", "b", "", ""])
    (counts, other) = next(Resampling(repeats=500).draws(units, np.arange(3)))
    assert counts.shape == (500, 5)
    assert (counts[:, 0] == counts[:, 1]).all()
    assert (counts[:, [0, 2, 3, 4]].sum(axis=1) == 4).all()
    assert (other.sum(axis=1) == 3).all()
    assert counts[:, [0, 2, 3, 4]].mean(axis=0) == pytest.approx(np.ones(4), abs=0.15)
    assert not independent(units)
    assert independent(np.arange(4))


def test_the_same_seed_draws_the_same_whatever_else_is_drawn() -> None:
    (alone,) = next(Resampling(repeats=100).draws(np.arange(7)))
    together, _ = next(Resampling(repeats=100).draws(np.arange(7), np.arange(9)))
    assert np.array_equal(alone, together)
    (another,) = next(Resampling(repeats=100, seed=1).draws(np.arange(7)))
    assert not np.array_equal(alone, another)


def test_bins_hold_every_image_once_and_equal_values_together() -> None:
    rng = np.random.default_rng(0)
    values = np.r_[rng.normal(size=9000), np.full(2000, 0.25), np.full(50, -np.inf)]
    marks = (rng.uniform(size=len(values)) < 0.3).astype(float)
    found = Binned.of(values, marks)
    assert found.weights.sum() == len(values)
    assert len(found.values) <= 4002
    assert found.weights @ found.marks == marks.sum()
    kept = np.isfinite(found.values)
    assert found.weights[kept] @ found.values[kept] == pytest.approx(values[:-50].sum())
    assert found.weights[~kept].sum() == 50
    assert 2000 <= found.weights[np.abs(found.values - 0.25) < 1e-3].sum() < 2030


def test_weighted_draws_have_the_mean_and_the_spread_of_draws() -> None:
    how = Resampling(repeats=4000)
    (counts,) = next(how.weighted(np.array([5, 15])))
    (single,) = next(how.draws(np.arange(20)))
    assert (counts.sum(axis=1) == 20).all()
    assert counts[:, 0].mean() == pytest.approx(5, abs=0.15)
    assert counts[:, 0].std() == pytest.approx(single[:, :5].sum(axis=1).std(), rel=0.1)


def test_an_interval_needs_values_in_half_of_the_samples() -> None:
    how = Resampling(repeats=100)
    assert how.interval(np.linspace(0, 1, 101)) == pytest.approx((0.025, 0.975))
    assert np.isnan(how.interval(np.r_[np.full(60, np.nan), np.ones(40)])).all()
