"""A normalising flow over the vector at each position of feature maps, given the position.

Affine couplings after Dinh et al., ICLR 2017, 1605.08803; conditional on the place as Gudovskiy et al., WACV 2022, 2107.12571.
"""

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offmap.represent.nets.feature_net import FeatureNet, Maps, Shapes, Stack, places
from offmap.represent.nets.unet import draw
from offmap.represent.train.parallel import ALONE, Crew

BOUND = 2.0
"""Of the logarithm of a coupling's scale."""

PLACES = 16
"""Numbers that tell a position."""


class Coupling(nn.Module):
    """``(a, b) -> (a, b exp(s(a, p)) + t(a, p))`` after a fixed permutation; s and t are 0 at first."""

    order: Tensor

    def __init__(self, width: int, hidden: int, rng: torch.Generator) -> None:
        super().__init__()
        self.kept = width // 2
        self.register_buffer("order", torch.randperm(width, generator=rng))
        last = nn.Conv2d(hidden, 2 * (width - self.kept), 1)
        nn.init.zeros_(last.weight)
        self.net = nn.Sequential(nn.Conv2d(self.kept + PLACES, hidden, 1), nn.SiLU(), nn.Conv2d(hidden, hidden, 1), nn.SiLU(), last)

    def forward(self, x: Float[Tensor, "n c h w"], where: Float[Tensor, "n p h w"]) -> tuple[Tensor, Float[Tensor, "n h w"]]:
        """The image of x and the logarithm of the determinant at each position."""
        x = x[:, self.order]
        a, b = x[:, : self.kept], x[:, self.kept :]
        raw, shift = self.net(torch.cat([a, where], dim=1)).to(x).chunk(2, dim=1)
        logs = BOUND * torch.tanh(raw / BOUND)
        return torch.cat([a, b * logs.exp() + shift], dim=1), logs.sum(dim=1)


class PositionFlow(FeatureNet):
    """Exact ``-log p(x | place)`` in nats of the stacked maps; before the first step that of one Gaussian for all positions.

    Args:
        shapes: of the maps.
        blocks: couplings.
        hidden: width of their networks.
        rng: of weights and permutations.
    """

    def __init__(self, shapes: Shapes, *, blocks: int, hidden: int, rng: torch.Generator) -> None:
        super().__init__()
        self.stack = Stack(shapes, whiten=True)
        self.blocks = nn.ModuleList(Coupling(self.stack.width, hidden, rng) for _ in range(blocks))
        draw(self, rng)

    def adapt(self, batches: Iterable[Maps]) -> None:
        """As ``Stack.adapt``."""
        self.stack.adapt(batches)

    def latent(self, maps: Maps) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n h w"]]:
        """Standard normal z at each position, and the logarithm of the determinant of features to z."""
        z = self.stack(maps)
        where = places(z.shape[2:], PLACES, z).expand(len(z), -1, -1, -1)
        volume = -self.stack.factor.diagonal().log().sum() + torch.zeros_like(z[:, 0])
        for block in self.blocks:
            z, added = block(z, where)
            volume = volume + added
        return z, volume

    def oddness(self, maps: Maps) -> Float[Tensor, "n h w"]:
        """Negative log density in nats."""
        z, volume = self.latent(maps)
        return 0.5 * z.square().sum(dim=1) + 0.5 * z.shape[1] * math.log(2 * math.pi) - volume

    def loss(self, maps: Maps, rng: torch.Generator, crew: Crew = ALONE) -> Float[Tensor, ""]:
        """Mean negative log density in nats a dimension."""
        return self.oddness(maps).mean() / self.stack.width

    def of_image(self, oddness: Float[Tensor, "n h w"]) -> Float[Tensor, " n"]:
        """Mean over positions."""
        return oddness.flatten(1).mean(dim=1)
