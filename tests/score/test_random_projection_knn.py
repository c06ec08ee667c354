"""Projected neighbours against scikit-learn on the same projection, and against the distances that it should keep."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.knn import KNN
from offmap.score.random_projection_knn import RandomProjectionKNN

Signals = dict[str, Tensor]


def test_it_equals_scikit_learn_on_its_projection(batches: list[Signals], fit_signals: Signals, unseen: Signals) -> None:
    fitted = RandomProjectionKNN(components=5, k=4).fit(batches)
    projection = fitted.state["projection"].numpy()
    assert projection.shape == (12, 5)
    rows, queries = (normalize(s["features.last"].numpy()) @ projection for s in (fit_signals, unseen))
    expected = NearestNeighbors(n_neighbors=4).fit(rows).kneighbors(queries)[0][:, -1]
    np.testing.assert_allclose(fitted.score(unseen).numpy(), expected, rtol=1e-4, atol=1e-6)


def test_narrow_features_are_taken_as_they_are(batches: list[Signals], unseen: Signals) -> None:
    torch.testing.assert_close(RandomProjectionKNN().fit(batches).score(unseen), KNN().fit(batches).score(unseen))


def test_distances_are_kept_within_the_stated_error() -> None:
    generator = torch.Generator().manual_seed(1)
    fit, test = ({"features.last": torch.randn(n, 1500, generator=generator)} for n in (80, 40))
    ratio = RandomProjectionKNN(components=512, k=40).fit([fit]).score(test) / KNN(k=40).fit([fit]).score(test)
    assert abs(float(ratio.mean()) - 1) < 0.03
    assert float((ratio - 1).abs().max()) < 5 / (2 * 512) ** 0.5


def test_the_seed_decides_on_the_projection(batches: list[Signals], unseen: Signals) -> None:
    detector = RandomProjectionKNN(components=3)
    one, two = (detector.fit(batches, generator=torch.Generator().manual_seed(s)).score(unseen) for s in (1, 2))
    assert not torch.equal(one, two)


def test_known_failure_too_few_components_lose_the_shift() -> None:
    generator = torch.Generator().manual_seed(3)
    rows = torch.nn.functional.normalize(torch.randn(300, 400, generator=generator) + 4.0)
    fit, usual = {"features.last": rows[:200]}, {"features.last": rows[200:]}
    away = torch.nn.functional.normalize(torch.randn(1, 400, generator=generator))
    odd = {"features.last": rows[200:] + 0.25 * away}

    def area(components: int) -> float:
        fitted = RandomProjectionKNN(components=components, k=3).fit([fit])
        return float((fitted.score(odd)[:, None] > fitted.score(usual)[None]).double().mean())

    assert area(400) > 0.95
    assert area(2) < 0.95


def test_more_neighbours_than_images_and_another_width_are_refused(batches: list[Signals]) -> None:
    with pytest.raises(SignalError, match="k = 151 is more than the 150"):
        RandomProjectionKNN(k=151).fit(batches)
    with pytest.raises(SignalError, match="as when it was fitted"):
        RandomProjectionKNN(components=3).fit(batches).score({"features.last": torch.zeros(2, 5)})


@pytest.mark.parametrize("wrong", [{"components": 0}, {"k": 0}, {"k": 5, "max_bank": 4}])
def test_parameters_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        RandomProjectionKNN.from_params(wrong)
