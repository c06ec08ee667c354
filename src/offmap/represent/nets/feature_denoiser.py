"""A small diffusion model of feature maps, and its inversion: features become noise in three steps (Sakai et al., 2504.05662)."""

import math
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from offmap.represent.nets.distillation import groups
from offmap.represent.nets.feature_net import FeatureNet, Maps, Shapes, Stack, places
from offmap.represent.nets.unet import draw
from offmap.represent.train.parallel import ALONE, Crew

LEVELS = 1000
"""Steps T of the schedule."""

PLACES, TIMES = 16, 32
"""Numbers that tell a position, and a level."""


def kept_signal() -> Float[Tensor, " t"]:
    """``alpha_bar`` of the levels 0 ... 999: the linear schedule of Ho et al. 2020, beta from 1e-4 to 0.02."""
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, LEVELS, dtype=torch.float64), dim=0)


class Residual(nn.Module):
    """Two 3 x 3 convolutions; the level scales and shifts between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList(nn.GroupNorm(groups(width), width) for _ in range(2))
        self.level = nn.Linear(width, 2 * width)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Float[Tensor, "n c h w"], level: Float[Tensor, "n c"]) -> Float[Tensor, "n c h w"]:
        """Of one map."""
        scale, shift = self.level(level)[:, :, None, None].chunk(2, dim=1)
        inner = self.norms[1](self.first(functional.silu(self.norms[0](x)))) * (1 + scale) + shift
        out: Tensor = x + self.second(functional.silu(inner))
        return out


class FeatureDenoiser(FeatureNet):
    """Predicts the noise in whitened feature maps.

    Args:
        shapes: of the maps.
        width: channels.
        depth: residual blocks.
        steps: of the inversion; levels at equal distances, up to 999.
        rng: of the weights.
    """

    signal: Tensor

    def __init__(self, shapes: Shapes, *, width: int, depth: int, steps: int, rng: torch.Generator) -> None:
        super().__init__()
        self.stack = Stack(shapes, whiten=True)
        self.steps = [round((LEVELS - 1) * (i + 1) / steps) for i in range(steps)]
        self.enter = nn.Conv2d(self.stack.width + PLACES, width, 1)
        self.level = nn.Sequential(nn.Linear(TIMES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.blocks = nn.ModuleList(Residual(width) for _ in range(depth))
        self.leave = nn.Sequential(nn.GroupNorm(groups(width), width), nn.SiLU(), nn.Conv2d(width, self.stack.width, 1))
        nn.init.zeros_(self.leave[-1].weight)  # type: ignore[arg-type]
        self.register_buffer("signal", kept_signal().float())
        draw(self, rng)

    def adapt(self, batches: Iterable[Maps]) -> None:
        """As ``Stack.adapt``."""
        self.stack.adapt(batches)

    def noise(self, x: Float[Tensor, "n c h w"], level: Int64[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
        """The noise that the network sees in ``x_t``: ``sqrt(1 - a_t) x_t``, all there is to see in white features, and what it adds."""
        rates = torch.exp(-math.log(1e4) * torch.arange(TIMES // 2, device=x.device, dtype=x.dtype) / (TIMES // 2))
        angles = level[:, None] * rates
        told = self.level(torch.cat([angles.sin(), angles.cos()], dim=1))
        where = places(x.shape[2:], PLACES, x).expand(len(x), -1, -1, -1)
        inner = self.enter(torch.cat([x, where], dim=1))
        for block in self.blocks:
            inner = block(inner, told)
        share = self.signal[level][:, None, None, None]
        found: Tensor = (1 - share).sqrt() * x + share.sqrt() * self.leave(inner).to(x)
        return found

    def loss(self, maps: Maps, rng: torch.Generator, crew: Crew = ALONE) -> Float[Tensor, ""]:
        """``|eps - eps(sqrt(a_t) x + sqrt(1 - a_t) eps, t)|^2``, t uniform."""
        clean = self.stack(maps)
        level = crew.part(torch.randint(LEVELS, (len(clean) * crew.size,), generator=rng)).to(clean.device)
        drawn, share = crew.normal(clean.shape, rng).to(clean), self.signal[level][:, None, None, None]
        return (self.noise(share.sqrt() * clean + (1 - share).sqrt() * drawn, level) - drawn).square().mean()

    def inverted(self, clean: Float[Tensor, "n c h w"], steps: Sequence[int]) -> Float[Tensor, "n c h w"]:
        """DDIM upward: ``x_t' = sqrt(a_t') x0 + sqrt(1 - a_t') e``, ``x0 = (x_t - sqrt(1 - a_t) e) / sqrt(a_t)``, ``e = eps(x_t, t')``."""
        x, share = clean, torch.ones((), device=clean.device)
        for step in steps:
            found = self.noise(x, torch.full((len(x),), step, device=x.device))
            origin = (x - (1 - share).sqrt() * found) / share.sqrt()
            share = self.signal[step]
            x = share.sqrt() * origin + (1 - share).sqrt() * found
        return x

    def oddness(self, maps: Maps) -> Float[Tensor, "n h w"]:
        """``|z_T|`` at each position."""
        lengths: Tensor = torch.linalg.vector_norm(self.inverted(self.stack(maps), self.steps), dim=1)
        return lengths

    def of_image(self, oddness: Float[Tensor, "n h w"]) -> Float[Tensor, " n"]:
        """Range plus sum."""
        flat = oddness.flatten(1)
        return flat.amax(dim=1) - flat.amin(dim=1) + flat.sum(dim=1)
