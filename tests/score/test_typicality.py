"""Typicality: the distance from the mean surprise, and where it comes from."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from tests.score.bound_signals import parts
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.score.typicality import Typicality


def surprise(signals: dict[str, Tensor]) -> np.ndarray:
    rows = signals["elbo.parts:samples=1"].numpy()
    return rows[:, 1] - rows[:, 0]


def test_it_is_the_distance_from_the_mean_of_the_fit_images() -> None:
    fit, test = parts(50, seed=1), parts(9, seed=2)
    expected = np.abs(surprise(test) - surprise(fit).mean())
    for batches in ([fit], [{k: v[:20] for k, v in fit.items()}, {k: v[20:] for k, v in fit.items()}]):
        np.testing.assert_allclose(Typicality().fit(batches).score(test).numpy(), expected, rtol=1e-5)


def test_held_out_images_alone_make_the_mean_where_there_are_thirty() -> None:
    known, unseen, test = parts(50, seed=1), parts(30, seed=3, mean=-230.0), parts(9, seed=2)
    found = Typicality().fit([known], held_out=[unseen]).score(test).numpy()
    np.testing.assert_allclose(found, np.abs(surprise(test) - surprise(unseen).mean()), rtol=1e-5)
    few = {name: value[:29] for name, value in unseen.items()}
    both = np.concatenate([surprise(few), surprise(known)]).mean()
    found = Typicality().fit([known], held_out=[few]).score(test).numpy()
    np.testing.assert_allclose(found, np.abs(surprise(test) - both), rtol=1e-5)


def test_the_most_probable_image_is_odd_and_samples_are_not() -> None:
    """Of N(0, 1) in 500 dimensions: samples have ``-log p`` near the entropy; the mode, the most probable point, is far below it."""
    rng = np.random.default_rng(0)

    def of(x: np.ndarray) -> dict[str, Tensor]:
        likely = torch.from_numpy(stats.norm.logpdf(x).sum(axis=1))
        return {"elbo.parts:samples=1": torch.stack([likely, 0 * likely, 0 * likely + 500], dim=1)}

    fitted = Typicality().fit([of(rng.standard_normal((400, 500)))])
    assert float(fitted.state["entropy"]) == pytest.approx(250 * math.log(2 * math.pi * math.e), rel=2e-3)
    assert float(fitted.score(of(np.zeros((1, 500))))) == pytest.approx(250, abs=3)
    assert float(fitted.score(of(rng.standard_normal((50, 500)))).max()) < 60


def test_trap_an_odd_image_of_the_usual_likelihood_is_missed() -> None:
    fit = parts(50, seed=1)
    at = -surprise(fit).mean()
    assert float(Typicality().fit([fit]).score({"elbo.parts:samples=1": torch.tensor([[at, 0.0, 64.0]])})) < 1e-3


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="typicality: samples = 1001"):
        Typicality(samples=1001)
