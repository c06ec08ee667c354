"""ASH-B against its formula, how it differs from ASH-S, and features it must refuse."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.ash_b import ASHB
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
        out.append(-logsumexp(weight @ np.where(pruned > 0, h.sum() / count, 0) + bias))
    return np.array(out)


@pytest.mark.parametrize("percentile", [0.0, 65.0, 90.0, 98.0])
def test_it_equals_the_formula(rectified_batches: list[Signals], rectified_unseen: Signals, percentile: float) -> None:
    got = ASHB(percentile=percentile).fit(rectified_batches).score(rectified_unseen)
    np.testing.assert_allclose(got.numpy(), oracle(rectified_unseen, percentile), rtol=1e-5, atol=1e-6)


def test_an_image_without_any_activation_scores_finitely(rectified_batches: list[Signals]) -> None:
    score = ASHB().fit(rectified_batches).score({"features.penultimate": torch.zeros(1, 12)})
    assert float(score) == pytest.approx(-float(rectified_batches[0]["head.bias"].logsumexp(0)))


def test_family_trap_features_with_negatives_are_refused(batches: list[Signals]) -> None:
    with pytest.raises(SignalError, match=r"ash_b: .* are negative .*rectifier"):
        ASHB().fit(batches)


def test_trap_it_is_another_method_than_ash_s(rectified_batches: list[Signals], rectified_unseen: Signals) -> None:
    binary, scaled = (m.fit(rectified_batches).score(rectified_unseen) for m in (ASHB(percentile=65.0), ASHS(percentile=65.0)))
    assert not torch.equal(binary.argsort(), scaled.argsort())


def test_known_failure_what_is_pruned_goes_to_what_is_kept(rectified_batches: list[Signals], rectified_unseen: Signals) -> None:
    head = {"head.weight": torch.eye(12)[:2].double(), "head.bias": torch.zeros(2).double()}
    fitted = ASHB().fit([{**b, **head} for b in rectified_batches])
    usual = torch.zeros(1, 12).double()
    usual[0, 0] = 5.0
    odd = torch.full((1, 12), 4.9).double()
    odd[0, 0] = 5.0
    assert float(fitted.score({"features.penultimate": odd})) < float(fitted.score({"features.penultimate": usual}))


@pytest.mark.parametrize("percentile", [-1.0, 98.5, float("nan")])
def test_a_percentile_out_of_range_is_refused(percentile: float) -> None:
    with pytest.raises(ConfigError, match="ash_b: percentile"):
        ASHB(percentile=percentile)
