"""VRA against its formula in both readings of the lower end, and features it must refuse."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.react import ReAct
from offmap.score.vra import VRA

Signals = dict[str, Tensor]


@pytest.mark.parametrize("low", ["zero", "clip"])
def test_it_equals_the_formula(rectified_batches: list[Signals], rectified_signals: Signals, rectified_unseen: Signals, low: str) -> None:
    weight, bias, rows = (rectified_signals[k].numpy() for k in ("head.weight", "head.bias", "features.penultimate"))
    a, b = np.percentile(rows, [60, 90], method="inverted_cdf")
    assert a > 0
    h = rectified_unseen["features.penultimate"].numpy()
    shaped = np.where(h < a, 0.0 if low == "zero" else a, np.minimum(h, b))
    got = VRA.from_params({"lower": 60, "upper": 90, "low": low}).fit(rectified_batches).score(rectified_unseen)
    np.testing.assert_allclose(got.numpy(), -logsumexp(shaped @ weight.T + bias, axis=1), rtol=1e-5, atol=1e-6)


def test_trap_to_zero_and_to_the_threshold_are_two_methods(rectified_batches: list[Signals], rectified_unseen: Signals) -> None:
    zero, clip = (VRA(lower=60.0, low=low).fit(rectified_batches).score(rectified_unseen) for low in ("zero", "clip"))
    assert float((zero - clip).abs().min()) > 1e-4


def test_known_failure_with_many_zeros_it_is_react(rectified_batches: list[Signals], rectified_unseen: Signals) -> None:
    fitted = VRA().fit(rectified_batches)
    assert float(fitted.state["ends"][0]) == 0.0
    torch.testing.assert_close(fitted.score(rectified_unseen), ReAct().fit(rectified_batches).score(rectified_unseen))


def test_family_trap_features_with_negatives_are_refused(batches: list[Signals]) -> None:
    with pytest.raises(SignalError, match=r"vra: .* are negative"):
        VRA().fit(batches)


def test_an_upper_end_of_zero_is_refused(rectified_batches: list[Signals]) -> None:
    sparse = [{**b, "features.penultimate": b["features.penultimate"] * (torch.arange(12) == 0)} for b in rectified_batches]
    with pytest.raises(SignalError, match="activations are zero"):
        VRA().fit(sparse)


@pytest.mark.parametrize("wrong", [{"lower": 90.0, "upper": 90.0}, {"upper": 101.0}, {"lower": -1.0}, {"low": "none"}])
def test_parameters_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        VRA.from_params(wrong)
