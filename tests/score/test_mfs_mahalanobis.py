"""MFS with the Mahalanobis distance: against scikit-learn on the dimensions that scipy finds to move."""

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from sklearn.covariance import LedoitWolf
from tests.score.conftest import MOVED, cut, moved
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.score.mfs_mahalanobis import MFSMahalanobis

Signals = dict[str, Tensor]


def rows_of(signals: Signals) -> np.ndarray:
    return signals["features.last"].numpy()[:, MOVED]


def test_the_dimensions_that_moved_are_kept() -> None:
    fit = moved(200, seed=1)
    distances = [wasserstein_distance(a, b) for a, b in zip(fit["features.last"].T, fit["proxy_features.last"].T, strict=True)]
    fitted = MFSMahalanobis(keep=len(MOVED) / 40, least=1).fit(cut(fit))
    assert fitted.state["kept"].tolist() == sorted(np.argsort(distances)[::-1][: len(MOVED)]) == MOVED


def test_it_equals_scikit_learn_with_and_without_labels() -> None:
    fit, test = moved(200, seed=1), moved(50, seed=2)
    rows, queries = rows_of(fit), rows_of(test)
    detector = MFSMahalanobis(keep=len(MOVED) / 40, least=1)
    bare = {k: v for k, v in fit.items() if k != "label"}
    np.testing.assert_allclose(detector.fit([bare]).score(test).numpy(), LedoitWolf().fit(rows).mahalanobis(queries), rtol=1e-5)
    which = np.arange(200) % 3
    means = np.stack([rows[which == c].mean(axis=0) for c in range(3)])
    precision = LedoitWolf(assume_centered=True).fit(rows - means[which]).precision_
    expected = np.min([np.einsum("nd,de,ne->n", queries - m, precision, queries - m) for m in means], axis=0)
    np.testing.assert_allclose(detector.fit(cut(fit)).score(test).numpy(), expected, rtol=1e-5)


def test_known_failure_a_shift_that_the_proxies_do_not_show_is_not_looked_at() -> None:
    usual = moved(50, seed=2)
    odd = {"features.last": usual["features.last"].clone()}
    odd["features.last"][:, 30:] += 100.0
    fitted = MFSMahalanobis(least=9).fit([moved(200, seed=1)])
    torch.testing.assert_close(fitted.score(odd), fitted.score(usual))


@pytest.mark.parametrize(("wrong", "message"), [({"keep": 0.0}, "keep = 0"), ({"shrinkage": "no"}, "shrinkage")])
def test_parameters_out_of_range_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MFSMahalanobis.from_params(wrong)
