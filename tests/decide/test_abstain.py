"""Abstention: p-values that are valid, and bounds that are kept as often as promised."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from offmap.core.errors import ConfigError
from offmap.decide.abstain import Abstention, LearnThenTest, p_value
from offmap.decide.risk_control import ConformalRiskControl

SPLITS = 200


def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Uniform confidence c that fails with probability (1 - c) / 2."""
    confidence = rng.uniform(size=n)
    return confidence, (rng.uniform(size=n) < (1 - confidence) / 2).astype(float)


def true_risk(threshold: float) -> float:
    """Of the images above a threshold: the mean of (1 - c) / 2 over (t, 1)."""
    return (1 - max(threshold, 0.0)) / 4


@pytest.mark.parametrize("testing", ["fixed_sequence", "bonferroni"])
@pytest.mark.parametrize("n", [150, 800])
def test_the_bound_is_broken_in_at_most_the_stated_share(testing: str, n: int) -> None:
    rule = LearnThenTest(risk=0.1, probability=0.8, testing=testing, levels=20)
    rng = np.random.default_rng(n)
    broken, covered = 0, []
    for _ in range(SPLITS):
        found = rule.choose(*draw(rng, n), generator=rng)
        covered.append(found.coverage)
        broken += found.threshold is not None and true_risk(found.threshold) > 0.1
    assert broken <= binom.ppf(0.999, SPLITS, 0.2)
    assert broken / SPLITS <= 0.2
    most = 0.4
    assert (0 if n == 150 else 0.1) < np.mean(covered) < most, "from 0.4 of all images on the bound is broken"


@pytest.mark.parametrize("testing", ["fixed_sequence", "bonferroni"])
def test_the_bound_is_kept_with_ties_and_a_risk_that_is_not_monotone(testing: str) -> None:
    """Confidence on five values; the surest fail more often than the next."""
    rng, rates = np.random.default_rng(7), np.array([0.12, 0.02, 0.1, 0.3, 0.5])
    rule = LearnThenTest(risk=0.08, probability=0.8, testing=testing, levels=20)
    broken = 0
    for _ in range(SPLITS):
        kind = rng.integers(0, 5, 600)
        found = rule.choose(-kind.astype(float), (rng.uniform(size=600) < rates[kind]).astype(float), generator=rng)
        taken = [rate for k, rate in enumerate(rates) if found.threshold is not None and -k > found.threshold]
        broken += bool(taken) and float(np.mean(taken)) > 0.08
    assert broken / SPLITS <= 0.2


@pytest.mark.parametrize("testing", ["fixed_sequence", "bonferroni"])
def test_the_bound_is_kept_on_the_rest_of_a_table_that_is_split_anew(testing: str) -> None:
    """Two hundred random splits of 6,000 images into 500 to calibrate and the rest."""
    rng = np.random.default_rng(11)
    confidence, loss = draw(rng, 6000)
    confidence = np.round(confidence, 2)
    rule = LearnThenTest(risk=0.12, probability=0.9, testing=testing, levels=20)
    broken = 0
    for _ in range(SPLITS):
        order = rng.permutation(6000)
        own, rest = order[:500], order[500:]
        kept = rule.choose(confidence[own], loss[own], generator=rng).accepts(confidence[rest])
        broken += bool(kept.any()) and float(loss[rest][kept].mean()) > 0.12
    assert broken / SPLITS <= 0.1


def test_a_perfect_confidence_is_accepted_up_to_the_bound() -> None:
    loss = np.zeros(2000)
    loss[1500:] = 1
    found = LearnThenTest(risk=0.1).choose(-np.arange(2000.0), loss, generator=np.random.default_rng(0))
    assert 0.75 < found.coverage < 0.85
    assert found.risk < 0.1
    assert found.accepts(np.array([0.0, -1999.0])).tolist() == [True, False]


def test_everything_is_accepted_where_nothing_fails_and_nothing_where_too_few_images_test() -> None:
    rule = LearnThenTest(risk=0.05, probability=0.95, share=0.5)
    assert rule.needed == 59
    rng = np.random.default_rng(0)
    assert rule.choose(np.arange(200.0), np.zeros(200), generator=rng) == Abstention(-math.inf, 1.0, 0.0, 200, 100)
    few = rule.choose(np.arange(100.0), np.zeros(100), generator=rng)
    assert few.threshold is None
    assert few.coverage == 0
    assert not few.accepts(np.array([1e9])).any()


def test_images_that_were_not_assessed_are_never_accepted() -> None:
    confidence = np.r_[np.arange(300.0), np.full(100, -np.inf)]
    found = LearnThenTest().choose(confidence, np.zeros(400), generator=np.random.default_rng(0))
    assert found.threshold == -math.inf
    assert found.coverage == 0.75
    assert ConformalRiskControl().choose(confidence, np.zeros(400)).coverage == 0.75


@pytest.mark.parametrize(("failures", "n", "risk"), [(0, 60, 0.05), (3, 100, 0.1), (20, 100, 0.1)])
def test_p_values_of_failures_are_those_of_the_binomial_test(failures: int, n: int, risk: float) -> None:
    exact = p_value(failures / n, n, risk, binary=True)
    assert exact == pytest.approx(binomtest(failures, n, risk, alternative="less").pvalue)
    assert p_value(failures / n, n, risk) >= exact - 1e-12


def test_p_values_of_other_losses_are_valid() -> None:
    """Losses with mean exactly at the bound: p <= u in at most a share u."""
    rng = np.random.default_rng(0)
    found = np.array([p_value(float(rng.beta(0.5, 4.5, 50).mean()), 50, 0.1) for _ in range(3000)])
    assert all((found <= u).mean() <= u for u in (0.01, 0.05, 0.1, 0.3))
    steps = [p_value(m, 50, 0.1) for m in np.linspace(0, 0.2, 21).tolist()]
    assert all(one <= two + 1e-12 for one, two in pairwise(steps))
    assert p_value(0.0, 0, 0.1) == 1.0


def test_conformal_risk_control_holds_in_expectation_and_is_tight() -> None:
    """The mean over calibration sets of P(accepted and wrong), (1 - t)^2 / 4 above t."""
    rng, bound = np.random.default_rng(0), 0.05
    met = []
    for _ in range(2000):
        found = ConformalRiskControl(undetected=bound).choose(*draw(rng, 100))
        met.append((1 - max(found.threshold, 0.0)) ** 2 / 4 if found.threshold is not None else 0.0)
    assert bound - 0.012 < np.mean(met) < bound + 3 * np.std(met) / np.sqrt(2000)


def test_conformal_risk_control_by_hand() -> None:
    confidence = np.array([9, 8, 7, 6, 5, 4, 3, 2, 1.0])
    loss = np.array([0, 1, 0, 1, 0, 0, 0, 0, 0.0])
    rule = ConformalRiskControl(undetected=0.2)
    assert rule.needed == 4
    found = rule.choose(confidence, loss)
    assert found.threshold == 6.0
    assert (found.coverage, found.risk) == (pytest.approx(3 / 9), pytest.approx(1 / 3))
    assert rule.choose(confidence[:3], np.zeros(3)).threshold is None
    assert rule.choose(confidence[:4], np.zeros(4)).threshold == -math.inf


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"risk": 0.0}, "risk = 0.0"),
        ({"probability": 1.0}, "probability = 1.0"),
        ({"share": 1.5}, "share = 1.5"),
        ({"levels": 0}, "levels = 0"),
        ({"testing": "holm"}, "testing = 'holm'"),
    ],
)
def test_refusals(changed: dict[str, float | str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        LearnThenTest.from_params(changed)
    with pytest.raises(ConfigError, match=r"undetected = 1.0"):
        ConformalRiskControl(undetected=1.0)
