"""Relative Mahalanobis++ against scikit-learn's covariances on normalised features."""

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.preprocessing import normalize
from torch import Tensor

from offmap.core.errors import SignalError
from offmap.score.relative_mahalanobis import RelativeMahalanobis
from offmap.score.relative_mahalanobis_pp import RelativeMahalanobisPP

Signals = dict[str, Tensor]


def test_it_equals_scikit_learn_on_unit_vectors(batches: list[Signals], fit_signals: Signals, unseen: Signals) -> None:
    rows, queries = (normalize(s["features.last"].numpy()) for s in (fit_signals, unseen))
    labels = fit_signals["label"].numpy()
    means = {c: rows[labels == c].mean(axis=0) for c in np.unique(labels)}
    within = LedoitWolf(assume_centered=True).fit(np.stack([r - means[c] for r, c in zip(rows, labels, strict=True)])).precision_
    near = np.min([np.einsum("nd,de,ne->n", queries - m, within, queries - m) for m in means.values()], axis=0)
    expected = near - LedoitWolf().fit(rows).mahalanobis(queries)
    got = RelativeMahalanobisPP().fit(batches).score(unseen)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_it_is_the_relative_distance_of_unit_vectors(batches: list[Signals], unseen: Signals) -> None:
    def unit(signals: Signals) -> Signals:
        return {**signals, "features.last": torch.nn.functional.normalize(signals["features.last"])}

    expected = RelativeMahalanobis().fit([unit(b) for b in batches]).score(unit(unseen))
    torch.testing.assert_close(RelativeMahalanobisPP().fit(batches).score(unseen), expected)


def test_known_failure_the_length_is_not_seen(batches: list[Signals], unseen: Signals) -> None:
    fitted = RelativeMahalanobisPP().fit(batches)
    torch.testing.assert_close(fitted.score({"features.last": 10 * unseen["features.last"]}), fitted.score(unseen), rtol=1e-4, atol=1e-4)


def test_one_class_is_refused(batches: list[Signals]) -> None:
    with pytest.raises(SignalError, match="two classes or more"):
        RelativeMahalanobisPP().fit([{**b, "label": torch.zeros_like(b["label"])} for b in batches])


def test_fewer_images_than_dimensions_and_a_zero_row() -> None:
    generator = torch.Generator().manual_seed(3)
    rows, labels = torch.randn(20, 50, generator=generator), torch.arange(20) % 2
    fitted = RelativeMahalanobisPP().fit([{"features.last": rows, "label": labels}])
    assert bool(torch.isfinite(fitted.score({"features.last": torch.zeros(1, 50)})).all())
