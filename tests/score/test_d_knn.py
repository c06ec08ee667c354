"""D-KNN against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.d_knn import DKNN
from offmap.score.knn import KNN

Signals = dict[str, Tensor]


def parts(fit: Signals, queries: Signals, variance: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Bank and queries inside the subspace and outside it."""
    rows, test = (normalize(s["features.last"].numpy()) for s in (fit, queries))
    pca = PCA(variance, svd_solver="full").fit(rows)
    inside = [pca.inverse_transform(pca.transform(x)) for x in (rows, test)]
    return [(inside[0], inside[1]), (rows - inside[0], test - inside[1])]


@pytest.mark.parametrize("k", [1, 6])
def test_it_equals_scikit_learn_with_leave_one_out(batches: list[Signals], fit_signals: Signals, unseen: Signals, k: int) -> None:
    expected = np.zeros(60)
    for bank, test in parts(fit_signals, unseen, 0.8):
        index = NearestNeighbors(n_neighbors=k).fit(bank)
        own, distance = index.kneighbors(n_neighbors=k)[0][:, -1], index.kneighbors(test)[0][:, -1]
        expected += (distance - own.mean()) / own.std(ddof=1)
    got = DKNN(k=k, variance=0.8).fit(batches).score(unseen)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_held_out_images_standardise_if_given(batches: list[Signals], fit_signals: Signals, unseen: Signals) -> None:
    fitted = DKNN(k=3).fit(batches, held_out=[unseen])
    scores = fitted.score(unseen)
    assert abs(float(scores.mean())) < 1e-5
    expected = np.zeros(60)
    for bank, test in parts(fit_signals, unseen, 0.9):
        distance = NearestNeighbors(n_neighbors=3).fit(bank).kneighbors(test)[0][:, -1]
        expected += (distance - distance.mean()) / distance.std(ddof=1)
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_a_small_shift_outside_the_subspace_counts_that_knn_hardly_sees() -> None:
    generator = torch.Generator().manual_seed(3)
    fixed = torch.tensor([0.0, 0.0, 0.0, 0.3])

    def draw(count: int, shift: float) -> Signals:
        wide = torch.randn(count, 3, generator=generator)
        noise = 0.002 * torch.randn(count, 1, generator=generator)
        rows = torch.cat([torch.nn.functional.normalize(wide), noise], dim=1) + fixed
        return {"features.last": rows + torch.tensor([0.0, 0, 0, shift])}

    fit, usual, odd = draw(300, 0), draw(100, 0), draw(100, 0.03)

    def area(detector: DKNN | KNN) -> float:
        fitted = detector.fit([fit])
        return float((fitted.score(odd)[:, None] > fitted.score(usual)[None]).double().mean())

    assert area(DKNN(k=3, variance=0.99)) > 0.95
    assert area(KNN(k=3)) < 0.75


def test_known_failure_more_noise_outside_the_subspace_alone_looks_odd() -> None:
    generator = torch.Generator().manual_seed(5)

    def draw(count: int, noise: float) -> Signals:
        wide = torch.nn.functional.normalize(torch.randn(count, 2, generator=generator))
        return {"features.last": torch.cat([wide, noise * torch.randn(count, 4, generator=generator)], dim=1)}

    fitted = DKNN(k=3, variance=0.95).fit([draw(300, 0.01)])
    assert float(fitted.score(draw(100, 0.03)).median()) > float(fitted.score(draw(100, 0.01)).quantile(0.95))


def test_no_more_neighbours_than_other_images(batches: list[Signals]) -> None:
    with pytest.raises(SignalError, match="less than the 150 images"):
        DKNN(k=150).fit(batches)
    with pytest.raises(SignalError, match="held-out images and needs at least 2"):
        DKNN().fit(batches, held_out=[{k: v[:1] for k, v in batches[0].items() if not k.startswith("head.")}])


@pytest.mark.parametrize("wrong", [{"k": 0}, {"variance": 0.0}, {"k": 5, "max_bank": 5}])
def test_parameters_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        DKNN.from_params(wrong)
