"""MFS with the Mahalanobis distance of unit vectors: against scikit-learn on the dimensions that scipy finds to move."""

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from sklearn.covariance import LedoitWolf
from sklearn.preprocessing import normalize
from tests.score.conftest import MOVED, cut, moved
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.score.mfs_mahalanobis_pp import MFSMahalanobisPP

Signals = dict[str, Tensor]


def rows_of(signals: Signals) -> np.ndarray:
    return np.asarray(normalize(signals["features.last"].numpy()[:, MOVED]))


def test_the_dimensions_that_moved_are_kept() -> None:
    fit = moved(200, seed=1)
    distances = [wasserstein_distance(a, b) for a, b in zip(fit["features.last"].T, fit["proxy_features.last"].T, strict=True)]
    fitted = MFSMahalanobisPP(keep=len(MOVED) / 40, least=1).fit(cut(fit))
    assert fitted.state["kept"].tolist() == sorted(np.argsort(distances)[::-1][: len(MOVED)]) == MOVED


def test_it_equals_scikit_learn_with_and_without_labels() -> None:
    fit, test = moved(200, seed=1), moved(50, seed=2)
    rows, queries = rows_of(fit), rows_of(test)
    detector = MFSMahalanobisPP(keep=len(MOVED) / 40, least=1)
    bare = {k: v for k, v in fit.items() if k != "label"}
    np.testing.assert_allclose(detector.fit([bare]).score(test).numpy(), LedoitWolf().fit(rows).mahalanobis(queries), rtol=1e-5)
    which = np.arange(200) % 3
    means = np.stack([rows[which == c].mean(axis=0) for c in range(3)])
    precision = LedoitWolf(assume_centered=True).fit(rows - means[which]).precision_
    expected = np.min([np.einsum("nd,de,ne->n", queries - m, precision, queries - m) for m in means], axis=0)
    np.testing.assert_allclose(detector.fit(cut(fit)).score(test).numpy(), expected, rtol=1e-5)


def test_known_failure_a_shift_of_the_length_alone_is_not_seen() -> None:
    usual = moved(50, seed=2)
    fitted = MFSMahalanobisPP(least=9).fit([moved(200, seed=1)])
    torch.testing.assert_close(fitted.score({"features.last": 9.0 * usual["features.last"]}), fitted.score(usual))


@pytest.mark.parametrize(("wrong", "message"), [({"keep": 0.0}, "keep = 0"), ({"shrinkage": "no"}, "shrinkage")])
def test_parameters_out_of_range_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MFSMahalanobisPP.from_params(wrong)
