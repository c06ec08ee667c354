"""AdaSCALE-A against its formula, SCALE, and features it must refuse."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from tests.score.adascale import NAME, Signals, factors, with_moved

from offmap.core.errors import ConfigError, SignalError
from offmap.score.adascale_a import AdaSCALEA
from offmap.score.scale import SCALE


@pytest.mark.parametrize(("low", "high"), [(75.0, 85.0), (0.0, 98.0)])
@pytest.mark.parametrize(("top", "shift_top", "weight"), [(0.05, 0.01, 10.0), (0.5, 0.3, 2.0)])
def test_it_equals_the_formula(
    rectified_signals: Signals,
    rectified_batches: list[Signals],
    rectified_unseen: Signals,
    low: float,
    high: float,
    top: float,
    shift_top: float,
    weight: float,
) -> None:
    fit, seen = with_moved(rectified_signals), with_moved(rectified_unseen, seed=5)
    at = np.cumsum([0] + [len(b["label"]) for b in rectified_batches])
    batches = [{**b, NAME: fit[NAME][i:j]} for b, i, j in zip(rectified_batches, at, at[1:], strict=False)]
    detector = AdaSCALEA(p_min=low, p_max=high, top=top, shift_top=shift_top, shift_weight=weight)
    r = factors(fit, seen, low=low, high=high, top=top, shift_top=shift_top, weight=weight)
    weight_, bias = seen["head.weight"].numpy(), seen["head.bias"].numpy()
    expected = [-logsumexp(weight_ @ (h * f) + bias) for h, f in zip(seen["features.penultimate"].numpy(), r, strict=True)]
    np.testing.assert_allclose(detector.fit(batches).score(seen).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_with_one_percentile_it_is_scale(rectified_signals: Signals, rectified_unseen: Signals) -> None:
    fit, seen = with_moved(rectified_signals), with_moved(rectified_unseen)
    got = AdaSCALEA(p_min=80.0, p_max=80.0).fit([fit]).score(seen)
    torch.testing.assert_close(got, SCALE(percentile=80.0).fit([rectified_signals]).score(rectified_unseen), rtol=1e-6, atol=1e-6)


def test_an_image_that_shifts_more_scores_higher(rectified_signals: Signals) -> None:
    fitted = AdaSCALEA(p_min=50.0, p_max=95.0).fit([with_moved(rectified_signals)])
    still, shifted = (with_moved(rectified_signals, size=size) for size in (0.0, 5.0))
    difference = fitted.score(shifted) - fitted.score(still)
    strongest = rectified_signals["logits"].amax(dim=1) > 1
    assert float((difference[strongest] >= 0).double().mean()) == 1.0
    assert float(difference[strongest].mean()) > 0


def test_the_bank_has_a_bound_and_its_order_does_not_matter(rectified_signals: Signals) -> None:
    fit = with_moved(rectified_signals)
    fitted = AdaSCALEA(max_bank=20).fit([fit])
    assert len(fitted.state["shifts"]) == 20
    turned = {k: v if k.startswith("head.") else v.flip(0) for k, v in fit.items()}
    one, other = AdaSCALEA().fit([fit]), AdaSCALEA().fit([turned])
    assert torch.equal(one.state["shifts"], other.state["shifts"])


def test_family_trap_features_with_negatives_are_refused(fit_signals: Signals) -> None:
    with pytest.raises(SignalError, match=r"adascale_a: .* are negative .*rectifier"):
        AdaSCALEA().fit([with_moved(fit_signals)])


def test_an_image_without_any_activation_scores_finitely(rectified_signals: Signals) -> None:
    fitted = AdaSCALEA().fit([with_moved(rectified_signals)])
    score = fitted.score({"features.penultimate": torch.zeros(1, 12), NAME: torch.zeros(1, 12)})
    assert float(score) == pytest.approx(-float(rectified_signals["head.bias"].logsumexp(0)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"p_min": 90.0},
        {"p_max": 98.5},
        {"p_min": -1.0},
        {"top": 0.0},
        {"top": float("nan")},
        {"shift_top": 1.5},
        {"share": 0.0},
        {"epsilon": -0.5},
        {"shift_weight": float("inf")},
        {"max_bank": 0},
    ],
)
def test_a_parameter_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"adascale_a: .*{next(iter(wrong))} = "):
        AdaSCALEA(**wrong)
