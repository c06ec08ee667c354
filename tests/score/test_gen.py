"""Generalised entropy against its formula, and in the tail where the naive formula is zero."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.gen import GEN

Signals = dict[str, Tensor]


@pytest.mark.parametrize("gamma", [0.01, 0.1, 1.0, 5.0])
@pytest.mark.parametrize("top", [1, 2, 100])
def test_it_equals_the_formula(batches: list[Signals], unseen: Signals, gamma: float, top: int) -> None:
    p = -np.sort(-softmax(unseen["logits"].numpy(), axis=1), axis=1)[:, :top]
    expected = (p**gamma * (1 - p) ** gamma).sum(axis=1)
    np.testing.assert_allclose(GEN(gamma=gamma, top=top).fit(batches).score(unseen).numpy(), expected, rtol=1e-5, atol=1e-9)


def test_only_the_largest_probabilities_count() -> None:
    logits = torch.randn(5, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p = -np.sort(-softmax(logits.numpy(), axis=1), axis=1)[:, :100]
    got = GEN().fit([{"logits": logits}]).score({"logits": logits})
    np.testing.assert_allclose(got.numpy(), ((p * (1 - p)) ** 0.1).sum(axis=1), rtol=1e-5)


def test_one_minus_a_probability_of_nearly_one_is_not_lost() -> None:
    gap = 60.0  # 1 - p is 9e-27, and zero in floating point
    got = GEN().fit([{"logits": torch.zeros(1, 2)}]).score({"logits": torch.tensor([[gap, 0.0]])})
    assert float(got) == pytest.approx(2 * np.exp(-0.1 * gap), rel=1e-5)


def test_the_even_prediction_of_two_classes_is_the_largest() -> None:
    fitted = GEN(gamma=0.5).fit([{"logits": torch.zeros(1, 2)}])
    assert float(fitted.score({"logits": torch.full((1, 2), 3.0)})) == pytest.approx(2 * 0.25**0.5)


def test_known_failure_the_tail_of_many_classes_outweighs_the_top() -> None:
    sure = torch.full((1, 1000), -12.0)
    sure[0, 0] = 0.0
    torn = torch.full((1, 1000), -60.0)
    torn[0, :2] = 0.0
    fitted = GEN(top=1000).fit([{"logits": sure}])
    assert float(fitted.score({"logits": sure})) > float(fitted.score({"logits": torn}))
    few = GEN(top=2).fit([{"logits": sure}])
    assert float(few.score({"logits": sure})) < float(few.score({"logits": torn}))


@pytest.mark.parametrize("wrong", [{"gamma": 0.0}, {"gamma": float("inf")}, {"top": 0}])
def test_parameters_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        GEN.from_params(wrong)


def test_one_logit_is_refused() -> None:
    with pytest.raises(SignalError, match="two logits or more"):
        GEN().fit([{"logits": torch.zeros(3, 1)}])
