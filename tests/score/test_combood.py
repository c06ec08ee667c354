"""CombOOD against scikit-learn's neighbours and covariance."""

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.combood import CombOOD
from offmap.score.knn import KNN

Signals = dict[str, Tensor]


def headless(signals: Signals) -> Signals:
    return {"features.last": signals["features.last"]}


@pytest.mark.parametrize("k", [1, 8])
def test_it_equals_scikit_learn(unlabelled: list[Signals], fit_signals: Signals, unseen: Signals, k: int) -> None:
    held, test = ({"features.last": part} for part in unseen["features.last"].split(30))
    rows = normalize(fit_signals["features.last"].numpy())
    index, estimate = NearestNeighbors(n_neighbors=k).fit(rows), LedoitWolf().fit(rows)

    def logs(signals: Signals) -> np.ndarray:
        queries = normalize(signals["features.last"].numpy())
        return np.stack([np.log(index.kneighbors(queries)[0][:, -1]), np.log(estimate.mahalanobis(queries))], axis=1)

    expected = ((logs(test) - logs(held).mean(axis=0)) / logs(held).std(axis=0, ddof=1)).sum(axis=1)
    got = CombOOD(k=k).fit(unlabelled, held_out=[held]).score(test)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_labels_make_the_distance_that_to_the_nearest_class(batches: list[Signals], unlabelled: list[Signals], unseen: Signals) -> None:
    labelled, plain = (CombOOD().fit(b, held_out=[unseen]) for b in (batches, unlabelled))
    assert len(labelled.state["centres"]) == 3
    assert len(plain.state["centres"]) == 1


def test_without_held_out_images_every_fourth_is_kept_apart(fit_signals: Signals, unseen: Signals) -> None:
    fourth = torch.arange(150) % 4 == 3
    rows = fit_signals["features.last"]
    explicit = CombOOD().fit([{"features.last": rows[~fourth]}], held_out=[{"features.last": rows[fourth]}])
    own = CombOOD().fit([{"features.last": rows}])
    assert torch.equal(own.score(unseen), explicit.score(unseen))
    assert len(own.state["bank"]) == 113


def test_known_failure_one_that_is_blind_to_the_shift_adds_noise_to_the_other() -> None:
    generator = torch.Generator().manual_seed(8)

    def draw(count: int, odd: bool) -> Signals:
        away = torch.rand(count, generator=generator) * 0.05 if odd else 0.3 + 0.7 * torch.rand(count, generator=generator)
        angle = torch.where(torch.rand(count, generator=generator) < 0.5, away, -away)
        return {"features.last": torch.stack([angle.cos(), angle.sin()], dim=1)}

    fit, held, usual, odd = draw(450, False), draw(150, False), draw(200, False), draw(200, True)
    comb, near = CombOOD(k=5).fit([fit], held_out=[held]), KNN(k=5).fit([fit])

    def separation(usual: Tensor, odd: Tensor) -> float:
        return float((odd.mean() - usual.mean()) / usual.std())

    alone = separation(near.score(usual).log(), near.score(odd).log())
    assert alone > 2
    assert separation(comb.score(usual), comb.score(odd)) < 0.9 * alone


def test_a_copy_of_a_bank_image_gives_a_finite_score(batches: list[Signals], fit_signals: Signals) -> None:
    assert bool(torch.isfinite(CombOOD(k=1).fit(batches).score(fit_signals)).all())


def test_too_few_images_are_refused(unlabelled: list[Signals], unseen: Signals) -> None:
    with pytest.raises(SignalError, match="k = 200 is more than the 150"):
        CombOOD(k=200).fit(unlabelled, held_out=[headless(unseen)])
    with pytest.raises(SignalError, match="1 held-out images"):
        CombOOD().fit(unlabelled, held_out=[{"features.last": unseen["features.last"][:1]}])


@pytest.mark.parametrize("wrong", [{"k": 0}, {"k": 5, "max_bank": 4}, {"shrinkage": "no"}])
def test_parameters_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        CombOOD.from_params(wrong)
