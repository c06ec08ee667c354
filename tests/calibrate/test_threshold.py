"""What n calibration images promise, against scipy and against simulation."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offmap.calibrate.threshold import beta_binomial_band, beta_interval, needed, rank
from offmap.core.errors import ConfigError


def test_the_interval_of_the_specification() -> None:
    low, high = beta_interval(200, 0.05)
    assert (round(low, 3), round(high, 3)) == (0.027, 0.077)


@pytest.mark.parametrize(("n", "alpha", "m"), [(200, 0.05, 300), (99, 0.1, 50), (1000, 0.005, 2000)])
def test_intervals_cover_as_often_as_they_say(n: int, alpha: float, m: int) -> None:
    rng = np.random.default_rng(n)
    threshold = np.sort(rng.random((20_000, n)), axis=1)[:, n - rank(n, alpha)]
    low, high = beta_interval(n, alpha)
    assert np.mean((1 - threshold >= low) & (1 - threshold <= high)) == pytest.approx(0.9, abs=0.01)
    counts = rng.binomial(m, 1 - threshold)
    fewest, most = beta_binomial_band(n, m, alpha)
    inside = np.mean((counts >= fewest) & (counts <= most))
    assert inside >= 0.988
    assert np.mean((counts > fewest) & (counts < most)) < inside


@given(st.integers(1, 3000), st.integers(1, 999))
def test_rank_and_needed_are_exact(n: int, thousandths: int) -> None:
    alpha, exact = thousandths / 1000, Fraction(thousandths, 1000)
    assert rank(n, alpha) == math.floor(exact * (n + 1))
    assert needed(alpha) == math.ceil(1 / exact) - 1
    assert (rank(n, alpha) >= 1) == (n >= needed(alpha))


def test_too_few_images_flag_nothing() -> None:
    assert beta_interval(10, 0.05) == (0.0, 0.0)
    assert beta_binomial_band(10, 100, 0.05) == (0, 0)
    assert beta_binomial_band(100, 0, 0.05) == (0, 0)


@pytest.mark.parametrize(("n", "alpha"), [(-1, 0.05), (10, 0.0), (10, 1.0), (10, math.nan)])
def test_nonsense_is_refused(n: int, alpha: float) -> None:
    with pytest.raises(ConfigError, match="must lie"):
        beta_interval(n, alpha)
