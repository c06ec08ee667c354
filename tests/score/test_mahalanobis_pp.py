"""Mahalanobis++ is Mahalanobis on features of length one, in fitting and scoring alike."""

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from sklearn.preprocessing import normalize
from torch import Tensor

from offmap.score.mahalanobis_pp import MahalanobisPP

Signals = dict[str, Tensor]


def test_it_equals_scikit_learn_on_normalised_features(unlabelled: list[Signals], fit_signals: Signals, unseen: Signals) -> None:
    rows, queries = (normalize(s["features.last"].numpy()) for s in (fit_signals, unseen))
    expected = LedoitWolf().fit(rows).mahalanobis(queries)
    np.testing.assert_allclose(MahalanobisPP().fit(unlabelled).score(unseen).numpy(), expected, rtol=1e-5)


def test_with_labels_it_equals_the_formula(batches: list[Signals], fit_signals: Signals, unseen: Signals) -> None:
    rows, queries = (normalize(s["features.last"].numpy()) for s in (fit_signals, unseen))
    labels = fit_signals["label"].numpy()
    means = {c: rows[labels == c].mean(axis=0) for c in np.unique(labels)}
    residuals = rows - np.stack([means[c] for c in labels])
    precision = np.linalg.inv(LedoitWolf(assume_centered=True).fit(residuals).covariance_)
    expected = np.min([np.einsum("nd,de,ne->n", queries - m, precision, queries - m) for m in means.values()], axis=0)
    np.testing.assert_allclose(MahalanobisPP().fit(batches).score(unseen).numpy(), expected, rtol=1e-5)


def test_known_failure_a_shift_of_length_is_not_seen(unlabelled: list[Signals], unseen: Signals) -> None:
    fitted = MahalanobisPP().fit(unlabelled)
    longer = {"features.last": 100.0 * unseen["features.last"]}
    torch.testing.assert_close(fitted.score(longer), fitted.score(unseen))


def test_a_feature_of_zeros_gets_a_finite_score(unlabelled: list[Signals]) -> None:
    assert bool(torch.isfinite(MahalanobisPP().fit(unlabelled).score({"features.last": torch.zeros(1, 12)})).all())
