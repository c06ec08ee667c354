"""Patches with their position, put together to images."""

import pytest
import torch
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.represent.operators.parse import parse
from offmap.represent.posterior.langevin import Langevin
from offmap.represent.posterior.patches import PatchPrior, starts
from offmap.represent.posterior.sampling import sample


def ramp(where: Tensor) -> Tensor:
    """What images of this prior look like on average: it depends on the place."""
    return 0.5 * where[:, :1] - 0.25 * where[:, 1:]


def net(x: Tensor, sigma: Tensor, where: Tensor) -> Tensor:
    mean, s = ramp(where), sigma.view(-1, 1, 1, 1).square()
    return (0.04 * x + s * mean) / (0.04 + s)


def whole(x: Tensor, sigma: Tensor) -> Tensor:
    """The same prior over whole images."""
    lines = (torch.linspace(-1, 1, side, dtype=x.dtype) for side in x.shape[2:])
    return net(x, sigma, torch.stack(torch.meshgrid(*lines, indexing="ij"))[None].expand(len(x), -1, -1, -1))


@pytest.mark.parametrize(("height", "width", "patch"), [(24, 24, 8), (30, 23, 8), (9, 16, 9)])
def test_a_prior_without_ties_between_pixels_is_put_together_exactly(height: int, width: int, patch: int) -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(5, 1, height, width, generator=rng, dtype=torch.float64)
    sigma = torch.rand(5, generator=rng, dtype=torch.float64) + 0.1
    prior = PatchPrior(net, patch)
    for moved in (None, torch.randint(patch, (5, 2), generator=rng)):
        found = (prior if moved is None else prior.at(moved))(x, sigma)
        torch.testing.assert_close(found, whole(x, sigma))


@pytest.mark.parametrize("side", [8, 15, 16, 17, 40])
def test_patches_cover_every_row_wherever_the_grid_lies(side: int) -> None:
    found = starts(torch.arange(8), side, 8)
    assert int(found.min()) >= 0
    assert int(found.max()) <= side - 8
    for row in found:
        covered = {r + i for r in row.tolist() for i in range(8)}
        assert covered == set(range(side))


def test_gradients_pass_through_patches() -> None:
    x = torch.randn(2, 1, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    PatchPrior(net, 5)(x, torch.ones(2, dtype=torch.float64)).sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 0.04 / 1.04))


def test_sampling_with_patches_equals_sampling_with_the_whole_and_moves_the_grid_in_every_step() -> None:
    moved: list[Tensor] = []

    class Watched(PatchPrior):
        def at(self, moved_: Tensor) -> "PatchPrior":
            moved.append(moved_)
            return super().at(moved_)

    operator = parse("ct:views=8,noise=0.02")
    y = operator.forward(whole(torch.zeros(2, 1, 16, 16, dtype=torch.float64), torch.full((2,), 100.0)))
    sampler = Langevin(steps=20, samples=2, inner=10, deviation=0.2)
    found = sample(Watched(net, 7), y, operator, sampler, size=(16, 16), seeds=[1, 2])
    assert len(moved) == 20
    assert len(torch.unique(torch.stack(moved).flatten())) == 7
    lines = torch.linspace(-1, 1, 16, dtype=torch.float64)
    expected = 0.5 * lines[:, None] - 0.25 * lines
    assert float((found.mean[:, 0] - expected).abs().mean()) < 0.15


def test_impossible_patches_are_refused() -> None:
    with pytest.raises(ConfigError, match="patch = 1"):
        PatchPrior(net, 1)
    with pytest.raises(SignalError, match="smaller than a patch of 9"):
        PatchPrior(net, 9)(torch.zeros(1, 1, 8, 20), torch.ones(1))
    with pytest.raises(SignalError, match="moved for 2"):
        PatchPrior(net, 4).at(torch.zeros(2, 2, dtype=torch.int64))(torch.zeros(1, 1, 8, 8), torch.ones(1))
