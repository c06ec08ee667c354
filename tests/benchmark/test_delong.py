"""DeLong's variance against the definition, its coverage, and its ends."""

import numpy as np
import pytest
from scipy.stats import norm

from offmap.benchmark.delong import auroc_difference, auroc_interval
from offmap.benchmark.metrics import auroc
from offmap.core.errors import ConfigError


def naive_variance(own: np.ndarray, other: np.ndarray) -> float:
    """The definition: variances of the row and column means of the matrix of wins."""
    wins = (other[:, None] > own[None, :]) + 0.5 * (other[:, None] == own[None, :])
    return float(wins.mean(axis=1).var(ddof=1) / len(other) + wins.mean(axis=0).var(ddof=1) / len(own))


@pytest.mark.parametrize("ties", [False, True])
def test_the_interval_follows_from_the_definition(ties: bool) -> None:
    rng = np.random.default_rng(0)
    own, other = rng.normal(size=31), rng.normal(1.0, 1.5, size=17)
    if ties:
        own, other = np.round(own), np.round(other)
    area, half = auroc(own, other), norm.ppf(0.975) * np.sqrt(naive_variance(own, other))
    logit, slope = np.log(area / (1 - area)), area * (1 - area)
    expected = [1 / (1 + np.exp(-(logit + sign * half / slope))) for sign in (-1, 1)]
    assert auroc_interval(own, other) == pytest.approx(expected)


def test_the_paired_difference_follows_from_the_definition() -> None:
    rng = np.random.default_rng(1)
    base_own, base_other = rng.normal(size=40), rng.normal(1.0, 1.0, size=50)
    own, other = base_own + 0.3 * rng.normal(size=40), base_other + 0.3 * rng.normal(size=50)
    found = auroc_difference(own, other, base_own, base_other)
    wins = [(o[:, None] > i[None, :]).astype(float) for i, o in ((own, other), (base_own, base_other))]
    gap = wins[0] - wins[1]
    variance = gap.mean(axis=1).var(ddof=1) / 50 + gap.mean(axis=0).var(ddof=1) / 40
    assert found.value == pytest.approx(auroc(own, other) - auroc(base_own, base_other))
    assert found.high - found.value == pytest.approx(norm.ppf(0.975) * np.sqrt(variance))
    assert found.p_value == pytest.approx(2 * norm.sf(abs(found.value) / np.sqrt(variance)))


def test_pairing_is_narrower_than_two_intervals() -> None:
    rng = np.random.default_rng(2)
    own, other = rng.normal(size=100), rng.normal(1.0, 1.0, size=100)
    rival = own + 0.1 * rng.normal(size=100), other + 0.1 * rng.normal(size=100)
    found = auroc_difference(own, other, *rival)
    low, high = auroc_interval(own, other)
    assert found.high - found.low < (high - low) / 2


def test_a_method_does_not_differ_from_itself() -> None:
    own, other = np.arange(10.0), np.arange(5.0, 15.0)
    assert auroc_difference(own, other, own, other).p_value == 1.0


def test_perfect_separation_of_few_images_is_not_certain() -> None:
    low, high = auroc_interval(np.arange(5.0), np.arange(10.0, 14.0))
    assert high == 1.0
    assert low == pytest.approx(0.025 ** (1 / 4))


def test_coverage_is_near_its_level() -> None:
    rng = np.random.default_rng(4)
    truth = norm.cdf(1.5 / np.sqrt(2))
    ends = [auroc_interval(rng.normal(size=50), rng.normal(1.5, 1.0, size=40)) for _ in range(400)]
    assert 0.92 <= np.mean([low <= truth <= high for low, high in ends]) <= 0.98


def test_one_image_or_uneven_pairs_are_refused() -> None:
    with pytest.raises(ConfigError, match="given 1 and 5"):
        auroc_interval(np.zeros(1), np.arange(5.0))
    with pytest.raises(ConfigError, match="same images: 5 and 4"):
        auroc_difference(np.arange(5.0), np.arange(5.0), np.arange(4.0), np.arange(5.0))
