"""MahaVar against a naive formula in numpy."""

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.mahalanobis import Mahalanobis
from offmap.score.mahavar import MahaVar

Signals = dict[str, Tensor]


def distances(fit: Signals, queries: np.ndarray) -> np.ndarray:
    """Squared distance to each class, (N, K)."""
    rows, labels = fit["features.last"].numpy(), fit["label"].numpy()
    means = {c: rows[labels == c].mean(axis=0) for c in np.unique(labels)}
    precision = LedoitWolf(assume_centered=True).fit(np.stack([r - means[c] for r, c in zip(rows, labels, strict=True)])).precision_
    return np.stack([np.einsum("nd,de,ne->n", queries - m, precision, queries - m) for m in means.values()], axis=1)


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_it_equals_the_formula(batches: list[Signals], fit_signals: Signals, unseen: Signals, weight: float) -> None:
    own, queries = (distances(fit_signals, s["features.last"].numpy()) for s in (fit_signals, unseen))
    scale = weight * own.min(axis=1).mean() / own.var(axis=1).mean()
    expected = queries.min(axis=1) - scale * queries.var(axis=1)
    np.testing.assert_allclose(MahaVar(weight=weight).fit(batches).score(unseen).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_without_weight_it_is_mahalanobis(batches: list[Signals], unseen: Signals) -> None:
    torch.testing.assert_close(MahaVar(weight=0.0).fit(batches).score(unseen), Mahalanobis().fit(batches).score(unseen))


def test_the_sign_an_image_between_the_classes_scores_above_one_as_near_to_its_class(batches: list[Signals], fit_signals: Signals) -> None:
    squared = distances(fit_signals, fit_signals["features.last"].numpy())
    centre = np.stack([fit_signals["features.last"][fit_signals["label"] == c].numpy().mean(axis=0) for c in (-4, 7, 100)]).mean(axis=0)
    middle = {"features.last": torch.from_numpy(centre[None])}
    assert distances(fit_signals, centre[None]).var() < squared.var(axis=1).min()
    gains = [
        float(MahaVar(weight=w).fit(batches).score(middle) - MahaVar(weight=w).fit(batches).score(fit_signals).mean()) for w in (0.0, 1.0)
    ]
    assert gains[1] > gains[0]


def test_known_failure_far_out_along_the_directions_of_overlapping_classes() -> None:
    generator = torch.Generator().manual_seed(4)
    labels = torch.arange(400) % 2
    rows = torch.randn(400, 2, generator=generator) + torch.tensor([[1.0, 0.0], [-1.0, 0.0]])[labels]
    fit, far = {"features.last": rows, "label": labels}, {"features.last": torch.tensor([[50.0, 0.0]])}
    fitted = MahaVar(weight=2.0).fit([fit])
    assert float(fitted.score(far)) < float(fitted.score(fit).median())
    assert float(Mahalanobis().fit([fit]).score(far)) > float(Mahalanobis().fit([fit]).score(fit).max())


def test_one_class_and_classes_with_one_mean_are_refused(batches: list[Signals]) -> None:
    with pytest.raises(SignalError, match="two classes or more"):
        MahaVar().fit([{**b, "label": torch.zeros_like(b["label"])} for b in batches])
    rows = torch.tensor([[1.0, 0], [-1, 0], [1, 0], [-1, 0]])
    with pytest.raises(SignalError, match="one mean"):
        MahaVar().fit([{"features.last": rows, "label": torch.tensor([0, 0, 1, 1])}])


def test_a_class_with_one_member_counts(batches: list[Signals], unseen: Signals) -> None:
    first = {**batches[0], "label": batches[0]["label"].clone()}
    first["label"][0] = 12345
    fitted = MahaVar().fit([first, *batches[1:]])
    assert len(fitted.state["centres"]) == 4
    assert bool(torch.isfinite(fitted.score(unseen)).all())


def test_parameters_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="weight"):
        MahaVar.from_params({"weight": -1.0})
