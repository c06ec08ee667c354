"""A discriminator of normal features and the same with noise (Liu et al., CVPR 2023, 2303.15140)."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offmap.represent.nets.feature_net import FeatureNet, Maps, Shapes, Stack
from offmap.represent.nets.unet import draw
from offmap.represent.train.parallel import ALONE, Crew


class Discriminator(FeatureNet):
    """A linear adaptor, noise on what it gives, and a network of one hidden layer that tells the two apart.

    Args:
        shapes: of the maps.
        hidden: width of the hidden layer.
        noise: deviation of the noise, in deviations of the features.
        margin: that outputs are to keep from 0, th in the paper.
        rng: of the weights.
    """

    def __init__(self, shapes: Shapes, *, hidden: int, noise: float, margin: float, rng: torch.Generator) -> None:
        super().__init__()
        self.stack = Stack(shapes, smooth=True)
        self.noise, self.margin = noise, margin
        self.adaptor = nn.Conv2d(self.stack.width, self.stack.width, 1)
        self.judge = nn.Sequential(
            nn.Conv2d(self.stack.width, hidden, 1), nn.BatchNorm2d(hidden), nn.LeakyReLU(0.2), nn.Conv2d(hidden, 1, 1, bias=False)
        )
        draw(self, rng)

    def adapt(self, batches: Iterable[Maps]) -> None:
        """As ``Stack.adapt``."""
        self.stack.adapt(batches)

    def loss(self, maps: Maps, rng: torch.Generator, crew: Crew = ALONE) -> Float[Tensor, ""]:
        """``max(0, th - D(q)) + max(0, th + D(q + noise))``."""
        own = self.adaptor(self.stack(maps))
        odd = own + self.noise * crew.normal(own.shape, rng).to(own)
        usual, strange = self.judge(torch.cat([own, odd])).float().chunk(2)
        total: Tensor = (self.margin - usual).clamp_min(0).mean() + (self.margin + strange).clamp_min(0).mean()
        return total

    def oddness(self, maps: Maps) -> Float[Tensor, "n h w"]:
        """``-D(q)``."""
        found: Tensor = -self.judge(self.adaptor(self.stack(maps)))[:, 0].float()
        return found
