"""The extrapolated tail: known laws, joined to the cap, always ranking, never failing."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import genpareto

from offmap.calibrate.conformal import Cross, Split
from offmap.calibrate.tail import FittedTail, Tail, estimate, from_state
from offmap.core.errors import BundleError, ConfigError, SignalError


def normal(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("xi", [-0.4, -0.2, 0.0, 0.2, 0.4])
def test_the_estimate_recovers_a_known_law(xi: float) -> None:
    found = np.array([estimate(genpareto.rvs(xi, scale=2.5, size=400, random_state=seed)) for seed in range(60)])
    assert found[:, 0].mean() == pytest.approx(xi, abs=0.04)
    assert found[:, 1].mean() == pytest.approx(2.5, rel=0.05)


@pytest.mark.parametrize("xi", [-0.3, 0.0, 0.3])
def test_the_estimate_agrees_with_maximum_likelihood(xi: float) -> None:
    sample = genpareto.rvs(xi, scale=1.0, size=3000, random_state=1)
    shape, _, scale = genpareto.fit(sample, floc=0)
    assert estimate(sample) == pytest.approx((shape, scale), abs=0.02)


@pytest.mark.parametrize("xi", [-0.9, 1.2])
def test_a_shape_beyond_the_limit_is_cut_and_the_scale_refitted(xi: float) -> None:
    sample = genpareto.rvs(xi, scale=1.0, size=2000, random_state=2)
    shape, scale = estimate(sample)
    assert shape == math.copysign(0.5, xi)
    _, _, oracle = genpareto.fit(sample, f0=shape, floc=0, scale=scale)
    likelihood = genpareto.logpdf(sample, shape, scale=scale).sum()
    assert likelihood >= genpareto.logpdf(sample, shape, scale=oracle).sum() - 1e-3
    assert scale + shape * sample.max() > 0


@pytest.mark.parametrize("xi", [-0.3, 1e-12, 0.25])
def test_bits_follow_the_survival_function(xi: float) -> None:
    tail = FittedTail(threshold=1.0, maximum=2.0, xi=xi, beta=2.0, n=99, n_tail=10, fit_p=0.5, fit="good")
    scores = torch.tensor([2.5, 3.0, 4.5], dtype=torch.float64)
    survival = genpareto.sf(scores.numpy() - 1, xi, scale=2.0) / genpareto.sf(1.0, xi, scale=2.0)
    np.testing.assert_allclose(tail.bits_extrapolated(scores), math.log2(100) - np.log2(survival), rtol=1e-9)


def test_shapes_near_zero_join_smoothly() -> None:
    scores = torch.tensor([3.0, 10.0])
    found = [FittedTail(1.0, 2.0, xi, 2.0, 99, 10, 0.5, "good").bits_extrapolated(scores) for xi in (-1e-7, -1e-10, 0.0, 1e-10, 1e-7)]
    for bits in found:
        np.testing.assert_allclose(bits, found[2], rtol=1e-5)


def test_beyond_a_finite_end_the_bits_are_capped() -> None:
    tail = FittedTail(threshold=0.0, maximum=1.0, xi=-0.5, beta=1.0, n=99, n_tail=10, fit_p=0.5, fit="good")
    assert tail.bits_extrapolated(torch.tensor([1.999, 2.0, 2.1, 1e30])).tolist()[1:] == [60, 60, 60]


calibrations = st.sampled_from(["normal", "lognormal", "uniform", "ties", "constant", "few", "one", "outlier", "cauchy"])


def sample(kind: str, seed: int) -> torch.Tensor:
    x = normal(300, seed)
    return {
        "normal": x,
        "lognormal": (3 * x).exp(),
        "uniform": torch.rand(300, generator=torch.Generator().manual_seed(seed)),
        "ties": (2 * x).round(),
        "constant": torch.full((300,), 2.5),
        "few": x[:12],
        "one": x[:1],
        "outlier": torch.cat([x, torch.tensor([1e6])]),
        "cauchy": x / normal(300, seed + 1000),
    }[kind]


@given(calibrations, st.integers(0, 5))
@settings(deadline=None, max_examples=40)
def test_the_tail_is_joined_at_the_cap_and_grows_strictly(kind: str, seed: int) -> None:
    calibration = sample(kind, seed)
    ranks, tail = Split.fit(calibration), Tail(replicates=19).fit(calibration)
    assert -0.5 <= tail.xi <= 0.5
    assert tail.beta > 0
    top = float(ranks.scores[-1])
    step = tail.beta * torch.logspace(-3, 2, 60, dtype=torch.float64)
    scores = torch.cat([torch.tensor([top], dtype=torch.float64), top + step]).float().unique()
    bits = tail.bits_extrapolated(scores)
    assert torch.isnan(bits[0])
    beyond = bits[1:]
    assert torch.isfinite(beyond).all()
    assert float(beyond[0]) - ranks.cap < 0.5
    assert (beyond >= ranks.cap).all()
    assert (beyond <= 60).all()
    assert ((beyond.diff() > 0) | (beyond[1:] == 60)).all()
    assert (ranks.p_value(scores) == 1 / (ranks.n + 1)).tolist() == torch.isfinite(bits).tolist()


@pytest.mark.parametrize(
    ("kind", "fit"), [("normal", "good"), ("ties", "ties"), ("constant", "ties"), ("few", "few"), ("one", "few"), ("uniform", "good")]
)
def test_what_cannot_be_fitted_is_flagged(kind: str, fit: str) -> None:
    tail = Tail().fit(sample(kind, 0))
    assert tail.fit == fit
    assert tail.words().startswith("Beyond")


def test_a_law_that_does_not_fit_is_called_poor_and_a_true_one_rarely() -> None:
    two_lumps = torch.cat([normal(300, 0), 20 + 0.1 * normal(30, 1).abs(), 40 + 0.1 * normal(30, 2).abs()])
    assert Tail().fit(two_lumps).fit == "poor"
    true = [Tail(replicates=39).fit(torch.from_numpy(genpareto.rvs(0.1, size=300, random_state=seed))).fit for seed in range(40)]
    assert true.count("poor") <= 6


def test_the_fit_depends_only_on_scores_and_generator() -> None:
    scores = normal(300, 0)
    shuffled = scores[torch.randperm(300, generator=torch.Generator().manual_seed(1))]
    assert Tail().fit(scores) == Tail().fit(shuffled)
    assert Tail().fit(scores, generator=torch.Generator().manual_seed(0)) == Tail().fit(scores)


def test_the_threshold_is_the_ninetieth_percentile() -> None:
    tail = Tail().fit(torch.arange(1000.0))
    assert (tail.threshold, tail.n_tail, tail.maximum) == (899, 100, 999)
    small = Tail().fit(torch.arange(60.0))
    assert (small.threshold, small.n_tail, small.fit) == (49, 10, small.fit)


def test_cross_calibration_is_at_least_the_cap_exactly_where_the_p_value_is_smallest() -> None:
    folds = [normal(30, seed) + seed for seed in range(5)]
    ranks = Cross.fit(folds)
    tail = Tail().fit(ranks.pooled())
    common = 5 * normal(500, 50)
    scores = torch.stack([common + 0.2 * normal(500, 51 + seed) + seed for seed in range(5)])
    p = ranks.p_value(scores)
    at_cap = p <= 1 / (ranks.n + 1)
    bits = tail.bits_extrapolated(ranks.score(scores), at_cap=at_cap)
    assert 0 < int(at_cap.sum()) < 500
    assert torch.equal(torch.isfinite(bits), at_cap)
    assert (bits[at_cap] >= ranks.cap).all()


def test_state_round_trip() -> None:
    tail = Tail().fit(normal(300, 0))
    assert from_state(tail.state()) == tail


@pytest.mark.parametrize(
    ("name", "position", "value"),
    [("law", 3, 0.0), ("law", 2, 0.7), ("law", 0, 1e9), ("law", 4, 2.0), ("counts", 2, 9), ("counts", 0, 0), ("counts", 1, 999)],
)
def test_a_damaged_state_is_refused(name: str, position: int, value: float) -> None:
    state = Tail().fit(normal(300, 0)).state()
    state[name][position] = value
    with pytest.raises(BundleError, match="damaged"):
        from_state(state)
    with pytest.raises(BundleError, match="damaged"):
        from_state({"law": torch.zeros(2, dtype=torch.float64), "counts": torch.zeros(3, dtype=torch.int64)})


def test_nonsense_is_refused() -> None:
    with pytest.raises(SignalError, match="no calibration scores"):
        Tail().fit(torch.empty(0))
    with pytest.raises(SignalError, match=r"images \[1\]"):
        Tail().fit(torch.tensor([1.0, float("nan")]))
    with pytest.raises(SignalError, match=r"images \[0\]"):
        Tail().fit(normal(50, 0)).bits_extrapolated(torch.tensor([float("inf")]))
    with pytest.raises(ConfigError, match="quantile"):
        Tail(quantile=1.0)
    with pytest.raises(ConfigError, match="minimum"):
        Tail(minimum=2)
