"""k-NN against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.knn import KNN, default_k

Signals = dict[str, Tensor]


@pytest.mark.parametrize("k", [1, 7, 150])
def test_it_equals_scikit_learn(batches: list[Signals], fit_signals: Signals, unseen: Signals, k: int) -> None:
    rows, queries = (normalize(s["features.last"].numpy()) for s in (fit_signals, unseen))
    expected = NearestNeighbors(n_neighbors=k).fit(rows).kneighbors(queries)[0][:, -1]
    np.testing.assert_allclose(KNN(k=k).fit(batches).score(unseen).numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("bank", "k"), [(1, 1), (9, 1), (150, 8), (1000, 50), (10**6, 50)])
def test_k_follows_the_size_of_the_bank(bank: int, k: int) -> None:
    assert default_k(bank) == k


def test_the_bank_is_bounded_by_a_sample(batches: list[Signals], fit_signals: Signals) -> None:
    bank = KNN(max_bank=30).fit(batches).state["bank"]
    everything = torch.nn.functional.normalize(fit_signals["features.last"]).float()
    assert tuple(bank.shape) == (30, 12)
    assert float(torch.cdist(bank, everything).min(dim=1).values.max()) < 1e-3


def test_an_image_of_the_bank_has_distance_zero(batches: list[Signals], fit_signals: Signals) -> None:
    assert float(KNN(k=1).fit(batches).score(fit_signals).max()) == 0.0


def test_known_failure_a_rare_kind_of_image_looks_odd() -> None:
    generator = torch.Generator().manual_seed(7)
    common = torch.tensor([10.0, 0, 0]) + 0.1 * torch.randn(197, 3, generator=generator)
    rare = torch.tensor([0, 10.0, 0]) + 0.1 * torch.randn(3, 3, generator=generator)
    fitted = KNN().fit([{"features.last": torch.cat([common, rare])}])
    assert float(fitted.score({"features.last": rare}).min()) > float(fitted.score({"features.last": common}).max())
    nearest = KNN(k=1).fit([{"features.last": torch.cat([common, rare])}])
    assert float(nearest.score({"features.last": rare}).max()) == 0.0


def test_more_neighbours_than_images_is_refused(batches: list[Signals]) -> None:
    with pytest.raises(SignalError, match="k = 151 is more than the 150 images"):
        KNN(k=151).fit(batches)


@pytest.mark.parametrize("wrong", [{"k": 0}, {"k": 5, "max_bank": 4}, {"max_bank": 0}])
def test_parameters_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        KNN.from_params(wrong)
