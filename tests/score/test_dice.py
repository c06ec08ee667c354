"""DICE against its formula with NumPy's percentile, and features it must refuse."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.dice import DICE
from offmap.score.energy import Energy

Signals = dict[str, Tensor]


@pytest.mark.parametrize("percentile", [50.0, 90.0])
def test_it_equals_the_formula(
    rectified_batches: list[Signals], rectified_signals: Signals, rectified_unseen: Signals, percentile: float
) -> None:
    weight, bias, rows = (rectified_signals[k].numpy() for k in ("head.weight", "head.bias", "features.penultimate"))
    contribution = weight * rows.mean(axis=0)
    masked = np.where(contribution > np.percentile(contribution, percentile), weight, 0)
    expected = -logsumexp(rectified_unseen["features.penultimate"].numpy() @ masked.T + bias, axis=1)
    got = DICE(percentile=percentile).fit(rectified_batches).score(rectified_unseen)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_dropping_nothing_gives_the_energy(rectified_batches: list[Signals], rectified_unseen: Signals) -> None:
    got = DICE(percentile=0.0).fit(rectified_batches).score(rectified_unseen)
    torch.testing.assert_close(got, Energy().fit(rectified_batches).score(rectified_unseen))


def test_family_trap_features_with_negatives_are_refused(batches: list[Signals]) -> None:
    with pytest.raises(SignalError, match=r"dice: .* are negative"):
        DICE().fit(batches)


def test_known_failure_classes_with_short_weights_keep_nothing(rectified_batches: list[Signals]) -> None:
    scale = torch.tensor([[100.0], [1.0], [1.0]], dtype=torch.float64)
    fitted = DICE().fit([{**b, "head.weight": scale * b["head.weight"].abs()} for b in rectified_batches])
    assert int(fitted.state["weight"][0].count_nonzero()) == 4
    assert int(fitted.state["weight"][1:].count_nonzero()) == 0


@pytest.mark.parametrize("percentile", [-1.0, 100.0, float("nan")])
def test_a_percentile_out_of_range_is_refused(percentile: float) -> None:
    with pytest.raises(ConfigError, match="percentile"):
        DICE(percentile=percentile)
