"""Distance of codes: Mahalanobis against a naive formula and scikit-learn, neighbours against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.latent_distance import LatentDistance


def codes(count: int, *, seed: int, width: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return {"latent.code": torch.randn(count, width, generator=generator, dtype=torch.float64) @ mix + 1.0}


def test_mahalanobis_is_the_formula_with_the_covariance_of_ledoit_and_wolf() -> None:
    fit, test = codes(80, seed=1), codes(10, seed=2)
    rows, asked = fit["latent.code"].numpy(), test["latent.code"].numpy()
    precision = np.linalg.inv(LedoitWolf().fit(rows).covariance_)
    centred = asked - rows.mean(axis=0)
    expected = np.einsum("ni,ij,nj->n", centred, precision, centred)
    np.testing.assert_allclose(LatentDistance().fit([fit]).score(test).numpy(), expected, rtol=1e-4)


def test_neighbours_are_those_of_scikit_learn() -> None:
    fit, test = codes(80, seed=1), codes(10, seed=2)
    found, _ = NearestNeighbors(n_neighbors=3).fit(fit["latent.code"].numpy()).kneighbors(test["latent.code"].numpy())
    fitted = LatentDistance(distance="knn", k=3).fit([{k: v[:50] for k, v in fit.items()}, {k: v[50:] for k, v in fit.items()}])
    np.testing.assert_allclose(fitted.score(test).numpy(), found[:, -1], rtol=1e-4)


def test_labels_give_a_mean_for_each_class() -> None:
    fit = codes(80, seed=1)
    label = torch.arange(80) % 2
    fit["latent.code"][label == 1] += 40.0
    middle = {"latent.code": fit["latent.code"].mean(dim=0, keepdim=True)}
    one = LatentDistance().fit([fit]).score(middle)
    two = LatentDistance().fit([{**fit, "label": label}]).score(middle)
    assert float(one) < 1e-6
    assert float(two) > 100


def test_trap_odd_images_with_usual_codes_are_missed() -> None:
    """What the encoder throws away cannot be told apart: the same code has the same number, whatever the image."""
    fitted, test = LatentDistance().fit([codes(80, seed=1)]), codes(10, seed=2)
    assert torch.equal(fitted.score(test), fitted.score({**test, "image": torch.rand(10, 1, 4, 4)}))


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="distance = 'cosine'"):
        LatentDistance.from_params({"distance": "cosine"})
    with pytest.raises(ConfigError, match="k = 0"):
        LatentDistance(k=0)
    with pytest.raises(ConfigError, match="shrinkage = 'none'"):
        LatentDistance.from_params({"shrinkage": "none"})
    with pytest.raises(SignalError, match="k = 5 is more than the 3 images"):
        LatentDistance(distance="knn").fit([codes(3, seed=1)])
    for detector in (LatentDistance(), LatentDistance(distance="knn")):
        with pytest.raises(SignalError, match="must be \\(N, 5, as when it was fitted\\)"):
            detector.fit([codes(30, seed=1)]).score(codes(3, seed=1, width=4))
