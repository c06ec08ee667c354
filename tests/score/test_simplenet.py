"""The discriminator's largest value, and what noise in all directions does not teach."""

import numpy as np
import pytest
import torch
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.simplenet import SimpleNet


def drawn(count: int = 5, seed: int = 0) -> dict[str, Tensor]:
    return {"simplenet.map": torch.randn(count, 1, 6, 5, generator=torch.Generator().manual_seed(seed))}


def test_it_is_the_largest_value_of_the_map_below_zero_too() -> None:
    seen = drawn()
    seen["simplenet.map"][0] -= 10
    fitted = SimpleNet().fit([drawn(3, 1)])
    np.testing.assert_array_equal(fitted.score(seen).numpy(), seen["simplenet.map"].numpy().reshape(5, -1).max(axis=1))
    assert float(fitted.score(seen)[0]) < 0
    assert torch.equal(fitted.map(seen), seen["simplenet.map"][:, 0])


def test_known_failure_one_odd_position_outweighs_many_that_are_a_little_odd() -> None:
    """The largest value sees a speck, the mean of all an image that is odd everywhere."""
    maps = torch.full((2, 1, 6, 5), -1.0)
    maps[0, 0, 2, 2], maps[1] = 0.5, 0.0
    speck = SimpleNet().fit([drawn()]).score({"simplenet.map": maps})
    whole = SimpleNet(top=1.0).fit([drawn()]).score({"simplenet.map": maps})
    assert float(speck[0]) > float(speck[1])
    assert float(whole[0]) < float(whole[1])


def test_another_shape_or_share_is_refused() -> None:
    with pytest.raises(SignalError, match=r"\(5, 6\) must be \(N, 1, ...\)"):
        SimpleNet().fit([{"simplenet.map": torch.zeros(5, 6)}])
    with pytest.raises(ConfigError, match="top = 2"):
        SimpleNet.from_params({"top": 2.0})
