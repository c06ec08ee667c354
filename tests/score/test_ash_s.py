"""ASH-S against its formula, and features it must refuse."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.ash_s import ASHS

Signals = dict[str, Tensor]


def oracle(signals: Signals, percentile: float) -> np.ndarray:
    """Image by image."""
    weight, bias = signals["head.weight"].numpy(), signals["head.bias"].numpy()
    out = []
    for h in signals["features.penultimate"].numpy():
        count = max(1, len(h) - round(len(h) * percentile / 100))
        largest = np.argsort(-h, kind="stable")[:count]
        pruned = np.zeros_like(h)
        pruned[largest] = h[largest]
        out.append(-logsumexp(weight @ (pruned * np.exp(h.sum() / pruned.sum())) + bias))
    return np.array(out)


@pytest.mark.parametrize("percentile", [0.0, 65.0, 90.0, 98.0])
def test_it_equals_the_formula(rectified_batches: list[Signals], rectified_unseen: Signals, percentile: float) -> None:
    got = ASHS(percentile=percentile).fit(rectified_batches).score(rectified_unseen)
    np.testing.assert_allclose(got.numpy(), oracle(rectified_unseen, percentile), rtol=1e-5, atol=1e-6)


def test_an_image_without_any_activation_scores_finitely(rectified_batches: list[Signals]) -> None:
    score = ASHS().fit(rectified_batches).score({"features.penultimate": torch.zeros(1, 12)})
    assert float(score) == pytest.approx(-float(rectified_batches[0]["head.bias"].logsumexp(0)))


def test_family_trap_features_with_negatives_are_refused(batches: list[Signals]) -> None:
    with pytest.raises(SignalError, match=r"ash_s: .* are negative .*rectifier"):
        ASHS().fit(batches)


def test_known_failure_even_activations_are_scaled_up_more(rectified_batches: list[Signals]) -> None:
    head = {"head.weight": torch.ones(2, 12) / 12, "head.bias": torch.zeros(2)}
    fitted = ASHS().fit([{**b, **head} for b in rectified_batches])
    even, peaked = torch.ones(1, 12), torch.zeros(1, 12)
    peaked[0, 0] = 12.0
    assert float(fitted.score({"features.penultimate": even})) < float(fitted.score({"features.penultimate": peaked}))


@pytest.mark.parametrize("percentile", [-1.0, 98.5, float("nan")])
def test_a_percentile_out_of_range_is_refused(percentile: float) -> None:
    with pytest.raises(ConfigError, match="ash_s: percentile"):
        ASHS(percentile=percentile)
