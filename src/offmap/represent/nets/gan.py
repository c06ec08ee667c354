"""Generator, critic and encoder of a small adversarial model (Schlegl et al., f-AnoGAN, Medical Image Analysis 2019)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from offmap.core.errors import ConfigError, SignalError
from offmap.represent.nets.architecture import Architecture

CONV: Mapping[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
SLOPE = 0.2
"""Of the leaky rectifiers."""


@dataclass(frozen=True, slots=True)
class GANShape(Architecture):
    """Architecture of the three networks.

    Args:
        size: side of the images in pixels; the generator makes no other.
        channels: of the images, 1 or 3.
        axes: of space, 2 or 3.
        widths: channels of each level from fine to coarse, multiples of 8; each level halves the grid.
        latent: numbers in a code.
    """

    what: ClassVar[str] = "adversarial model"

    size: int = 64
    channels: int = 1
    axes: int = 2
    widths: tuple[int, ...] = (32, 64, 128, 128)
    latent: int = 64

    def __post_init__(self) -> None:
        if self.channels not in (1, 3) or self.axes not in (2, 3):
            raise ConfigError(f"channels = {self.channels} must be 1 or 3, axes = {self.axes} must be 2 or 3")
        if not 1 <= len(self.widths) <= 6 or any(w < 8 or w % 8 for w in self.widths):
            raise ConfigError(f"widths = {self.widths} must be one to six multiples of 8")
        if not self.stride <= self.size <= 512 or not 1 <= self.latent <= 4096:
            raise ConfigError(
                f"size = {self.size} must lie between the stride of {len(self.widths)} levels, {self.stride}, and 512; "
                f"latent = {self.latent} between 1 and 4096"
            )

    @property
    def stride(self) -> int:
        """By how much the coarsest grid is smaller than the image."""
        return int(2 ** len(self.widths))

    @property
    def coarse(self) -> int:
        """Side of the coarsest grid."""
        return -(-self.size // self.stride)


class Generator(nn.Module):
    """A code, standard normal in training, becomes an image in [-1, 1]."""

    def __init__(self, shape: GANShape) -> None:
        super().__init__()
        self.shape, conv = shape, CONV[shape.axes]
        widths = shape.widths[::-1]
        self.first = nn.Linear(shape.latent, widths[0] * shape.coarse**shape.axes)
        self.levels = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(8, before), nn.LeakyReLU(SLOPE), nn.Upsample(scale_factor=2), conv(before, after, 3, padding=1))
            for before, after in zip(widths, (*widths[1:], widths[-1]), strict=True)
        )
        self.last = nn.Sequential(nn.GroupNorm(8, widths[-1]), nn.LeakyReLU(SLOPE), conv(widths[-1], shape.channels, 3, padding=1))

    def forward(self, code: Float[Tensor, "n z"]) -> Float[Tensor, "n c *s"]:
        """An image of each code."""
        x = self.first(code).view(len(code), -1, *[self.shape.coarse] * self.shape.axes)
        for level in self.levels:
            x = level(x)
        image: Tensor = self.last(x)[(..., *[slice(0, self.shape.size)] * self.shape.axes)]
        return image.tanh()


class Critic(nn.Module):
    """How real an image looks, and the features by which it tells; each layer has a spectral norm of 1 (Miyato et al., ICLR 2018)."""

    def __init__(self, shape: GANShape) -> None:
        super().__init__()
        self.shape = shape
        self.levels = nn.ModuleList(_Bounded(layer) for layer in _down(shape))
        self.last = _Bounded(nn.Linear(shape.widths[-1] * shape.coarse**shape.axes, 1))

    def features(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n d"]:
        """Output of the last convolution, flat."""
        x = _padded(x, self.shape)
        for level in self.levels:
            x = functional.leaky_relu(level(x), SLOPE)
        return x.flatten(1)

    def forward(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, " n"]:
        """Higher = more real."""
        realness: Tensor = self.last(self.features(x))
        return realness[:, 0]


class CodeEncoder(nn.Module):
    """An image becomes the code from which the generator makes it again."""

    def __init__(self, shape: GANShape) -> None:
        super().__init__()
        self.shape = shape
        self.levels = nn.ModuleList(
            nn.Sequential(layer, nn.GroupNorm(8, layer.out_channels), nn.LeakyReLU(SLOPE)) for layer in _down(shape)
        )
        self.last = nn.Linear(shape.widths[-1] * shape.coarse**shape.axes, shape.latent)

    def forward(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n z"]:
        """A code of each image."""
        x = _padded(x, self.shape)
        for level in self.levels:
            x = level(x)
        code: Tensor = self.last(x.flatten(1))
        return code


class AdversarialModel(nn.Module):
    """The three networks together.

    Args:
        shape: architecture.
        generator: of the weights; a fresh one with seed 0 if not given.
    """

    def __init__(self, shape: GANShape, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.shape = shape
        self.generator, self.critic, self.encoder = Generator(shape), Critic(shape), CodeEncoder(shape)
        _draw(self, generator if generator is not None else torch.Generator().manual_seed(0))

    def check(self, x: Float[Tensor, "n c *s"]) -> None:
        """Refuse images of another kind.

        Raises:
            SignalError: another size, or other channels or axes, than the model makes.
        """
        expected = (self.shape.channels, *[self.shape.size] * self.shape.axes)
        if tuple(x.shape[1:]) != expected:
            raise SignalError(
                f"images of shape {tuple(x.shape)} must be (N, {', '.join(map(str, expected))}): the generator makes no others"
            )


def code_loss(model: AdversarialModel, x: Float[Tensor, "n c *s"], kappa: float) -> tuple[Tensor, Tensor, Tensor]:
    """``G(E(x))``, and the two errors of each image: mean squares of ``x - G(E(x))`` and of ``f(x) - f(G(E(x)))``.

    Args:
        model: whose networks are used.
        x: in [-1, 1].
        kappa: 0 leaves the critic's features out, whose error is then 0.
    """
    back = model.generator(model.encoder(x))
    pixels = (x - back).float().square().flatten(1).mean(dim=1)
    if kappa == 0:
        return back, pixels, torch.zeros_like(pixels)
    return back, pixels, (model.critic.features(x) - model.critic.features(back)).float().square().mean(dim=1)


class _Bounded(nn.Module):
    """A layer whose weight is divided by its largest singular value, which one step of power iteration follows in training."""

    u: Tensor

    def __init__(self, layer: nn.Conv2d | nn.Conv3d | nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("u", torch.ones(layer.weight.shape[0]) / layer.weight.shape[0] ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            matrix = self.layer.weight.flatten(1)
            if self.training:
                with torch.no_grad():
                    self.u = functional.normalize(matrix @ functional.normalize(matrix.T @ self.u, dim=0), dim=0)
            weight = self.layer.weight / (matrix.T @ self.u).norm().clamp_min(1e-12)
        if isinstance(self.layer, nn.Linear):
            return functional.linear(x, weight, self.layer.bias)
        conv = functional.conv2d if isinstance(self.layer, nn.Conv2d) else functional.conv3d
        return conv(x, weight, self.layer.bias, 2, 1)


def _down(shape: GANShape) -> list[nn.Conv2d | nn.Conv3d]:
    conv, before = CONV[shape.axes], (shape.channels, *shape.widths[:-1])
    return [conv(a, b, 4, stride=2, padding=1) for a, b in zip(before, shape.widths, strict=True)]


def _padded(x: Tensor, shape: GANShape) -> Tensor:
    more = shape.coarse * shape.stride - shape.size
    return functional.pad(x, [0, more] * shape.axes, mode="replicate") if more else x


def _draw(net: nn.Module, generator: torch.Generator) -> None:
    for part in net.modules():
        if isinstance(part, nn.Conv2d | nn.Conv3d | nn.Linear):
            nn.init.kaiming_uniform_(part.weight, a=math.sqrt(5), generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        if isinstance(part, _Bounded):
            part.u.copy_(functional.normalize(torch.randn(part.u.shape, generator=generator), dim=0))
