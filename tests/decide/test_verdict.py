"""Verdicts by false-alarm rate, and never one without a p-value."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offmap.core.errors import ConfigError
from offmap.decide.verdict import Thresholds


@pytest.mark.parametrize(
    ("p", "verdict"), [(1.0, "accept"), (0.0501, "accept"), (0.05, "review"), (0.0051, "review"), (0.005, "reject"), (1e-9, "reject")]
)
def test_bands(p: float, verdict: str) -> None:
    assert Thresholds().verdict(p) == verdict


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 99))
def test_thresholds_are_exact_for_conformal_p_values(rank: int, n: int, percent: int) -> None:
    rank = min(rank, n + 1)
    thresholds = Thresholds(alpha=percent / 100, reject=percent / 300)
    flagged = thresholds.verdict(rank / (n + 1)) != "accept"
    assert flagged == (100 * rank <= percent * (n + 1))
    assert (thresholds.verdict(rank / (n + 1)) == "reject") == (300 * rank <= percent * (n + 1))


def test_shares_on_uniform_p_values() -> None:
    verdicts = Thresholds(alpha=0.1).verdicts(np.arange(1, 1001) / 1000)
    assert [verdicts.count(v) for v in ("reject", "review", "accept")] == [10, 90, 900]


def test_a_reason_wins_over_any_p_value() -> None:
    p = np.array([math.nan, 0.9, 0.001, 0.5])
    reasons = ["truncated", "wrong_modality", "", ""]
    assert Thresholds().verdicts(p, reasons) == ("not_assessed", "not_assessed", "reject", "accept")


def test_without_p_value_or_reason_there_is_no_verdict() -> None:
    with pytest.raises(ConfigError, match="needs a reason"):
        Thresholds().verdicts(np.array([0.5, math.nan]))
    for p in (0.0, -0.1, 1.1):
        with pytest.raises(ConfigError, match="p_value"):
            Thresholds().verdict(p)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown reason 'odd'"):
        Thresholds().verdicts(np.array([0.5]), ["odd"])
    with pytest.raises(ConfigError, match="2 p-values and 1 reasons"):
        Thresholds().verdicts(np.array([0.5, 0.5]), [""])
    for alpha, reject in ((0.0, None), (1.0, None), (0.05, 0.06), (0.05, 0.0), (math.nan, None)):
        with pytest.raises(ConfigError, match="alpha"):
            Thresholds(alpha=alpha, reject=reject)


def test_parameters_are_json() -> None:
    assert Thresholds.from_params({"alpha": 0.1, "reject": None}) == Thresholds(alpha=0.1)
    assert Thresholds.from_params(Thresholds(0.1, 0.02).params()).reject_at == 0.02


def test_nothing_gives_nothing() -> None:
    assert Thresholds().verdicts(np.array([], dtype=np.float64)) == ()
