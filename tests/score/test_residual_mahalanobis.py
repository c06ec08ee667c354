"""The linear autoencoder's residual against PCA and covariances of scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.mahalanobis import Mahalanobis
from offmap.score.residual import Residual
from offmap.score.residual_mahalanobis import ResidualMahalanobis

Signals = dict[str, Tensor]


@pytest.mark.parametrize("variance", [0.5, 0.9])
def test_it_equals_scikit_learn(batches: list[Signals], fit_signals: Signals, unseen: Signals, variance: float) -> None:
    rows, queries = (s["features.last"].numpy() for s in (fit_signals, unseen))
    full = PCA().fit(rows)
    kept = PCA(variance, svd_solver="full").fit(rows).n_components_
    residuals, test = (full.transform(x)[:, kept:] for x in (rows, queries))
    expected = LedoitWolf(assume_centered=True).fit(residuals).mahalanobis(test)
    got = ResidualMahalanobis(variance=variance).fit(batches).score(unseen)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5)


def test_a_quiet_direction_of_the_residual_counts_more_than_in_the_plain_residual() -> None:
    generator = torch.Generator().manual_seed(1)
    scale = torch.tensor([10.0, 1.0, 0.01])
    rows = torch.randn(400, 3, generator=generator) * scale
    odd = rows[:100] + torch.tensor([0.0, 0.0, 0.2])
    fit = {"features.last": rows}

    def area(detector: ResidualMahalanobis | Residual) -> float:
        fitted = detector.fit([fit])
        return float((fitted.score({"features.last": odd})[:, None] > fitted.score(fit)[None]).double().mean())

    assert area(ResidualMahalanobis()) > 0.95
    assert area(Residual(components=1)) < 0.65


def test_known_failure_a_shift_inside_the_subspace_is_not_seen(batches: list[Signals], fit_signals: Signals, unseen: Signals) -> None:
    fitted = ResidualMahalanobis().fit(batches)
    first = torch.from_numpy(PCA(1, svd_solver="full").fit(fit_signals["features.last"].numpy()).components_[0])
    inside = {"features.last": unseen["features.last"] + 1000 * first}
    torch.testing.assert_close(fitted.score(inside), fitted.score(unseen), rtol=1e-4, atol=1e-4)
    assert float(Mahalanobis().fit(batches).score(inside).min()) > float(Mahalanobis().fit(batches).score(unseen).max())


def test_fewer_images_than_dimensions_and_constant_columns(fit_signals: Signals, unseen: Signals) -> None:
    rows = fit_signals["features.last"][:8].clone()
    rows[:, 1] = 2.0
    for shrinkage in ("ledoit_wolf", "oas"):
        fitted = ResidualMahalanobis.from_params({"shrinkage": shrinkage}).fit([{"features.last": rows}])
        assert bool(torch.isfinite(fitted.score(unseen)).all())
        assert len(fitted.score(unseen).unique()) > 50


def test_one_image_is_refused(fit_signals: Signals) -> None:
    with pytest.raises(SignalError, match="at least two"):
        ResidualMahalanobis().fit([{"features.last": fit_signals["features.last"][:1]}])


@pytest.mark.parametrize("wrong", [{"variance": 1.0}, {"variance": 0.0}, {"shrinkage": "no"}])
def test_parameters_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        ResidualMahalanobis.from_params(wrong)
