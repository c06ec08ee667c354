"""AdaSCALE-L against its formula and AdaSCALE-A, and its trap."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from tests.score.adascale import NAME, Signals, factors, with_moved

from offmap.core.errors import ConfigError, SignalError
from offmap.score.adascale_a import AdaSCALEA
from offmap.score.adascale_l import AdaSCALEL


def test_it_equals_the_formula(rectified_signals: Signals, rectified_unseen: Signals) -> None:
    fit, seen = with_moved(rectified_signals), with_moved(rectified_unseen, seed=5)
    r = factors(fit, seen, low=75.0, high=85.0, top=0.05, shift_top=0.01, weight=10.0)
    expected = [-logsumexp(f * z) for z, f in zip(seen["logits"].numpy(), r, strict=True)]
    np.testing.assert_allclose(AdaSCALEL().fit([fit]).score(seen).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_without_bias_both_forms_are_one(rectified_signals: Signals, rectified_unseen: Signals) -> None:
    fit = {**with_moved(rectified_signals), "head.bias": torch.zeros(3, dtype=torch.float64)}
    seen = with_moved(rectified_unseen)
    torch.testing.assert_close(AdaSCALEL().fit([fit]).score(seen), AdaSCALEA().fit([fit]).score(seen), rtol=1e-5, atol=1e-6)


def test_both_forms_read_one_signal() -> None:
    assert AdaSCALEL().needs == AdaSCALEA().needs == {"features.penultimate", NAME}


def test_known_failure_with_negative_logits_a_larger_factor_raises_the_score(rectified_signals: Signals) -> None:
    negative = {**with_moved(rectified_signals), "head.weight": -torch.ones(2, 12) / 12, "head.bias": torch.full((2,), -5.0)}
    fitted = AdaSCALEL(p_min=50.0, p_max=95.0).fit([negative])
    still, shifted = (with_moved(rectified_signals, size=size) for size in (0.0, 5.0))
    assert float(fitted.score(shifted).mean()) < float(fitted.score(still).mean())


def test_refusals(fit_signals: Signals, rectified_signals: Signals) -> None:
    with pytest.raises(ConfigError, match="adascale_l: p_min = 90"):
        AdaSCALEL(p_min=90.0)
    with pytest.raises(SignalError, match=r"adascale_l: .* are negative"):
        AdaSCALEL().fit([with_moved(fit_signals)])
    narrow = {**rectified_signals, NAME: torch.zeros(150, 5)}
    with pytest.raises(SignalError, match=r"adascale_l: adascale.features.* of shape \(150, 5\) must be \(N, 12"):
        AdaSCALEL().fit([narrow])
