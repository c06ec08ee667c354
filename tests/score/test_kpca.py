"""Kernel PCA by random features against scikit-learn: the exact kernel, and PCA of the same random features."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.decomposition import PCA, KernelPCA
from sklearn.preprocessing import normalize
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.kpca import KPCA, fourier
from offmap.score.residual import Residual

Signals = dict[str, Tensor]


def test_random_features_are_of_length_one_and_meet_the_kernel() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(30, 4, dtype=torch.float64, generator=generator)
    features = fourier(rows, torch.randn(4, 20_000, dtype=torch.float64, generator=generator) / 2.0)
    exact = torch.exp(-torch.cdist(rows, rows).square() / (2 * 2.0**2))
    torch.testing.assert_close(features @ features.T, exact, rtol=0, atol=0.03)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(30, dtype=torch.float64))


def test_it_equals_pca_of_its_random_features(batches: list[Signals], fit_signals: Signals, unseen: Signals) -> None:
    fitted = KPCA(features=64, width=0.7).fit(batches)
    angles = [normalize(s["features.last"].numpy()) @ fitted.state["frequencies"].numpy() for s in (fit_signals, unseen)]
    rows, queries = (np.concatenate([np.cos(a), np.sin(a)], axis=1) / np.sqrt(32) for a in angles)
    pca = PCA(0.9, svd_solver="full").fit(rows)
    assert pca.n_components_ == fitted.state["basis"].shape[1]
    expected = np.linalg.norm(queries - pca.inverse_transform(pca.transform(queries)), axis=1)
    np.testing.assert_allclose(fitted.score(unseen).numpy(), expected, rtol=1e-5)


def test_with_many_random_features_it_nears_the_exact_kernel(batches: list[Signals], fit_signals: Signals, unseen: Signals) -> None:
    fitted, coarse = (KPCA(features=f, width=0.8).fit(batches) for f in (2048, 32))
    rows, queries = (normalize(s["features.last"].numpy()) for s in (fit_signals, unseen))
    kernel = KernelPCA(fitted.state["basis"].shape[1], kernel="rbf", gamma=1 / (2 * 0.8**2)).fit(rows)
    inside = np.square(kernel.transform(queries)).sum(axis=1)
    gram, own = (np.exp(-np.square(a[:, None] - rows[None]).sum(-1) / (2 * 0.8**2)) for a in (queries, rows))
    centred = 1 - 2 * gram.mean(axis=1) + own.mean()
    expected = np.sqrt(np.maximum(centred - inside, 0))
    near, far = (spearmanr(f.score(unseen).numpy(), expected).statistic for f in (fitted, coarse))
    assert near > 0.9
    assert near > far + 0.05


def test_the_width_is_the_median_distance(batches: list[Signals], fit_signals: Signals, unseen: Signals) -> None:
    rows = torch.nn.functional.normalize(fit_signals["features.last"])
    explicit = KPCA(features=64, width=float(torch.pdist(rows).median())).fit(batches)
    torch.testing.assert_close(KPCA(features=64).fit(batches).score(unseen), explicit.score(unseen))


def test_a_hole_in_a_curved_band_is_seen_that_plain_pca_does_not_see() -> None:
    angle = torch.linspace(0, 4.5, 300, dtype=torch.float64)
    band = torch.stack([angle.cos(), angle.sin(), torch.full_like(angle, 1.5)], dim=1)
    gap = torch.tensor([5.3, 5.4], dtype=torch.float64)
    odd = {"features.last": torch.stack([gap.cos(), gap.sin(), torch.full_like(gap, 1.5)], dim=1)}
    fit = {"features.last": band}
    curved = KPCA(width=0.3, variance=0.99).fit([fit])
    assert float(curved.score(odd).min()) > 2 * float(curved.score(fit).max())
    plain = Residual(components=2).fit([fit])
    assert float(plain.score(odd).max()) < 2 * float(plain.score(fit).max()) + 1e-6


def test_known_failure_all_far_images_score_alike(batches: list[Signals]) -> None:
    fitted = KPCA(width=0.05).fit(batches)
    generator = torch.Generator().manual_seed(1)
    far = fitted.score({"features.last": torch.randn(50, 12, generator=generator)})
    assert float(far.std() / far.mean()) < 0.05


def test_copies_of_one_image_are_refused_unless_the_width_is_given(batches: list[Signals]) -> None:
    one = {"features.last": batches[0]["features.last"][:1].repeat(9, 1)}
    with pytest.raises(SignalError, match="no width"):
        KPCA().fit([one])
    assert float(KPCA(width=1.0).fit([one]).score(one).max()) < 1e-6


@pytest.mark.parametrize("wrong", [{"features": 7}, {"features": 0}, {"width": 0.0}, {"variance": 1.0}])
def test_parameters_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        KPCA.from_params(wrong)
