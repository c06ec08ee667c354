"""Noise levels, and noise that depends on nothing but the image: an image scores as in its batch, today and tomorrow."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.represent.denoiser import Denoiser
from offmap.represent.stochastic import seed_of

_SEEDS: ContextVar[tuple[int, ...] | None] = ContextVar("seeds", default=None)


@contextmanager
def seeded_by(images: Float[Tensor, "n c *s"]) -> Iterator[None]:
    """While inside, noise of n tensors is seeded by these images: codes of an image differ in their last bits from batch to batch."""
    token = _SEEDS.set(tuple(map(seed_of, images)))
    try:
        yield
    finally:
        _SEEDS.reset(token)


def levels_of(name: str, count: int, low: float, high: float) -> Float64[Tensor, " l"]:
    """Deviations of the noise, from low to high in equal ratios; ``high`` alone where there is one.

    Raises:
        ConfigError: no level, or not ``0 < low <= high``; names the signal.
    """
    if not 1 <= count <= 1000 or not 0 < low <= high < float("inf"):
        raise ConfigError(f"signal {name!r}: {count} levels from low = {low} to high = {high}; 1 to 1000 and 0 < low <= high expected")
    steps = torch.linspace(0, 1, count, dtype=torch.float64) if count > 1 else torch.ones(1, dtype=torch.float64)
    return low * (high / low) ** steps


def noise_of(images: Float[Tensor, "n c *s"], count: int, *, salt: int = 0) -> Float[Tensor, "n k c *s"]:
    """Standard normal fields of each image, from a generator seeded with its pixels.

    Args:
        count: fields an image.
        salt: other numbers give other fields.
    """
    seeds = _SEEDS.get() or tuple(map(seed_of, images))
    generators = [torch.Generator().manual_seed(seed ^ salt) for seed in seeds]
    drawn = [torch.randn(count, *images.shape[1:], generator=generator) for generator in generators]
    return torch.stack(drawn).to(images)


def signs_of(images: Float[Tensor, "n c *s"], count: int, *, salt: int) -> Float[Tensor, "n k c *s"]:
    """As ``noise_of``, of values -1 and 1 with equal chances."""
    return torch.where(noise_of(images, count, salt=salt) < 0, -1.0, 1.0).to(images)


def denoised(denoise: Denoiser, x: Float[Tensor, "n c *s"], sigma: float) -> Float[Tensor, "n c *s"]:
    """All images at one level."""
    return denoise(x, x.new_full((len(x),), sigma))


def mean_over(values: Float[Tensor, "n *s"]) -> Float64[Tensor, " n"]:
    """Mean over all but the first axis, in float64."""
    return values.double().flatten(1).mean(dim=1)
