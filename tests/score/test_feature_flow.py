"""Negative log densities of a flow: the mean over positions against scipy, and the paradox that likelihood has."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.represent.nets.feature_flow import PositionFlow
from offmap.score.feature_flow import FeatureFlow


def drawn(count: int = 5, seed: int = 0) -> dict[str, Tensor]:
    return {"feature_flow.map": 30 + torch.randn(count, 1, 6, 5, generator=torch.Generator().manual_seed(seed))}


def test_the_mean_over_positions_is_the_likelihood_of_the_whole_map() -> None:
    """White features under a flow that has learnt nothing: scipy knows the density of all positions together."""
    net = PositionFlow(((3, 4, 4),), blocks=2, hidden=8, rng=torch.Generator().manual_seed(0)).eval()
    maps = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        seen = {"feature_flow.map": net.oddness([maps])[:, None]}
    fitted = FeatureFlow().fit([seen])
    whole = multivariate_normal(np.zeros(48)).logpdf(maps.double().numpy().reshape(5, 48))
    np.testing.assert_allclose(fitted.score(seen).numpy(), -whole / 16, rtol=1e-5)
    assert torch.equal(fitted.map(seen), seen["feature_flow.map"][:, 0])


def test_known_failure_features_without_contrast_are_likelier_than_usual_ones() -> None:
    """The likelihood paradox: the mean of the training features has a higher density than nearly all of them."""
    usual = torch.randn(50, 20, 4, 4, generator=torch.Generator().manual_seed(1))
    density = {
        name: 0.5 * x.square().sum(dim=1, keepdim=True) + 10 * math.log(2 * math.pi) for name, x in (("u", usual), ("flat", 0 * usual))
    }
    fitted = FeatureFlow().fit([{"feature_flow.map": density["u"]}])
    flat, own = (fitted.score({"feature_flow.map": density[name]}) for name in ("flat", "u"))
    assert float(flat.max()) < float(own.min())


def test_fewer_positions_see_a_lesion_that_the_mean_does_not() -> None:
    usual, ill = drawn(40, 1), drawn(40, 2)
    ill["feature_flow.map"][:, 0, 2, 2] += 5
    areas = []
    for top in (1.0, 0.0):
        fitted = FeatureFlow(top=top).fit([usual])
        own, other = fitted.score(usual), fitted.score(ill)
        areas.append(float((other[:, None] > own[None]).double().mean()))
    assert areas[1] > areas[0] + 0.1


def test_another_shape_or_share_is_refused() -> None:
    with pytest.raises(SignalError, match=r"\(5, 2, 6, 5\)"):
        FeatureFlow().fit([{"feature_flow.map": torch.zeros(5, 2, 6, 5)}])
    with pytest.raises(ConfigError, match="top = -1"):
        FeatureFlow.from_params({"top": -1.0})
