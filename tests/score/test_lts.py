"""LTS against its formula, negative logits, and features it must refuse."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.lts import LTS

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
        out.append(-logsumexp((weight @ h + bias) * (h.sum() / pruned.sum()) ** 2))
    return np.array(out)


@pytest.mark.parametrize("percentile", [0.0, 65.0, 90.0, 98.0])
def test_it_equals_the_formula(rectified_batches: list[Signals], rectified_unseen: Signals, percentile: float) -> None:
    got = LTS(percentile=percentile).fit(rectified_batches).score(rectified_unseen)
    np.testing.assert_allclose(got.numpy(), oracle(rectified_unseen, percentile), rtol=1e-5, atol=1e-6)


def test_an_image_without_any_activation_scores_finitely(rectified_batches: list[Signals]) -> None:
    score = LTS().fit(rectified_batches).score({"features.penultimate": torch.zeros(1, 12)})
    assert float(score) == pytest.approx(-np.log(3))


def test_family_trap_features_with_negatives_are_refused(batches: list[Signals]) -> None:
    with pytest.raises(SignalError, match=r"lts: .* are negative .*rectifier"):
        LTS().fit(batches)


def test_known_failure_negative_logits_turn_the_scaling_round(rectified_batches: list[Signals]) -> None:
    even, peaked = torch.ones(1, 12).double(), torch.zeros(1, 12).double()
    peaked[0, 0] = 12.0
    scores = []
    for sign in (1.0, -1.0):
        head = {"head.weight": sign * torch.ones(2, 12).double(), "head.bias": torch.zeros(2).double()}
        fitted = LTS().fit([{**b, **head} for b in rectified_batches])
        scores.append(float(fitted.score({"features.penultimate": even})) - float(fitted.score({"features.penultimate": peaked})))
    assert scores[0] < 0 < scores[1]


@pytest.mark.parametrize("percentile", [-1.0, 98.5, float("nan")])
def test_a_percentile_out_of_range_is_refused(percentile: float) -> None:
    with pytest.raises(ConfigError, match="lts: percentile"):
        LTS(percentile=percentile)
