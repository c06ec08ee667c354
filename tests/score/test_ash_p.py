"""ASH-P against its formula, and features it must refuse."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.ash_p import ASHP
from offmap.score.energy import Energy

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
        out.append(-logsumexp(weight @ pruned + bias))
    return np.array(out)


@pytest.mark.parametrize("percentile", [0.0, 65.0, 90.0, 98.0])
def test_it_equals_the_formula(rectified_batches: list[Signals], rectified_unseen: Signals, percentile: float) -> None:
    got = ASHP(percentile=percentile).fit(rectified_batches).score(rectified_unseen)
    np.testing.assert_allclose(got.numpy(), oracle(rectified_unseen, percentile), rtol=1e-5, atol=1e-6)


def test_an_image_without_any_activation_scores_finitely(rectified_batches: list[Signals]) -> None:
    score = ASHP().fit(rectified_batches).score({"features.penultimate": torch.zeros(1, 12)})
    assert float(score) == pytest.approx(-float(rectified_batches[0]["head.bias"].logsumexp(0)))


def test_family_trap_features_with_negatives_are_refused(batches: list[Signals]) -> None:
    with pytest.raises(SignalError, match=r"ash_p: .* are negative .*rectifier"):
        ASHP().fit(batches)


def test_pruning_nothing_gives_the_energy(rectified_batches: list[Signals], rectified_unseen: Signals) -> None:
    got = ASHP(percentile=0.0).fit(rectified_batches).score(rectified_unseen)
    torch.testing.assert_close(got, Energy().fit(rectified_batches).score(rectified_unseen))


def test_known_failure_the_largest_activations_alone_decide(rectified_batches: list[Signals], rectified_unseen: Signals) -> None:
    fitted = ASHP(percentile=90.0).fit(rectified_batches)
    rows = rectified_unseen["features.penultimate"]
    below = torch.minimum(rows * 0.99 + 0.5, rows.amax(dim=1, keepdim=True) * 0.99)
    odd = torch.where(rows == rows.amax(dim=1, keepdim=True), rows, below)
    torch.testing.assert_close(fitted.score({"features.penultimate": odd}), fitted.score(rectified_unseen))


@pytest.mark.parametrize("percentile", [-1.0, 98.5, float("nan")])
def test_a_percentile_out_of_range_is_refused(percentile: float) -> None:
    with pytest.raises(ConfigError, match="ash_p: percentile"):
        ASHP(percentile=percentile)
