"""Mahalanobis of moved images against scikit-learn, and where it is plain Mahalanobis."""

import math

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.mahalanobis import Mahalanobis
from offmap.score.mahalanobis_odin import MahalanobisODIN

Signals = dict[str, Tensor]
NAME = MahalanobisODIN().signal


def moved(signals: Signals) -> Signals:
    """Features that the step has shifted a little."""
    rows = signals["features.penultimate"]
    return {NAME: rows + 0.1 * rows.sin(), "label": signals["label"]}


def test_it_equals_scikit_learn_without_labels(batches: list[Signals], unseen: Signals) -> None:
    fit = [{NAME: moved(b)[NAME]} for b in batches]
    rows = torch.cat([b[NAME] for b in fit]).numpy()
    law = LedoitWolf().fit(rows)
    expected = law.mahalanobis(moved(unseen)[NAME].numpy())
    np.testing.assert_allclose(MahalanobisODIN().fit(fit).score(moved(unseen)).numpy(), expected, rtol=1e-5)


def test_it_equals_the_formula_with_labels(batches: list[Signals], unseen: Signals) -> None:
    fit = [moved(b) for b in batches]
    fitted = MahalanobisODIN().fit(fit)
    factor = fitted.state["factor"].numpy()
    covariance = factor @ factor.T
    rows, labels = torch.cat([b[NAME] for b in fit]).numpy(), torch.cat([b["label"] for b in fit]).numpy()
    means = [rows[labels == c].mean(axis=0) for c in np.unique(labels)]
    expected = [min((h - m) @ np.linalg.solve(covariance, h - m) for m in means) for h in moved(unseen)[NAME].numpy()]
    np.testing.assert_allclose(fitted.score(moved(unseen)).numpy(), expected, rtol=1e-5)


def test_without_a_step_it_is_mahalanobis(batches: list[Signals], unseen: Signals) -> None:
    still = [{NAME: b["features.penultimate"], "label": b["label"]} for b in batches]
    got = MahalanobisODIN().fit(still).score({NAME: unseen["features.penultimate"]})
    expected = Mahalanobis(layer="penultimate").fit(batches).score(unseen)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)


def test_known_failure_the_mean_of_two_modes_is_called_typical() -> None:
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 4, generator=rng, dtype=torch.float64)
    rows[:100, 0] += 20
    fitted = MahalanobisODIN().fit([{NAME: rows}])
    middle = torch.tensor([[10.0, 0, 0, 0]])
    assert float(fitted.score({NAME: middle})) < float(fitted.score({NAME: rows}).min())


def test_it_reads_the_signal_of_its_own_settings() -> None:
    assert MahalanobisODIN(epsilon=0.01).needs == {"odin.features:epsilon=0.01,temperature=1000"}


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="mahalanobis_odin: epsilon = -1"):
        MahalanobisODIN(epsilon=-1.0)
    with pytest.raises(ConfigError, match="mahalanobis_odin: temperature = inf"):
        MahalanobisODIN(temperature=math.inf)
    with pytest.raises(ConfigError, match=r"\[mahalanobis_odin\] shrinkage = 'none' must be one of"):
        MahalanobisODIN.from_params({"shrinkage": "none"})
    with pytest.raises(SignalError, match=r"do not vary|does not vary|two different"):
        MahalanobisODIN().fit([{NAME: torch.ones(30, 4)}])
