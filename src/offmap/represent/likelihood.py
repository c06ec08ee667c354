"""How probable a variational autoencoder finds an image, in nats of the image's 8-bit grey levels, and how far that can be compressed.

Pixels are rounded to 256 levels before the network sees them. A Gaussian decoder gives a level the probability of its bin,
``P(k) = F((k + 1/2 - 255 m) / 255 s) - F((k - 1/2 - 255 m) / 255 s)``, F the normal distribution function, and the lowest and the
highest level all that lies beyond; so the 256 probabilities of a pixel add up to 1, ``-log P`` is a code length, and no bin width is
left to choose.
"""

import io
import math
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.core.signals import Scalar
from offmap.represent.nets.autoencoder import VAE
from offmap.represent.stochastic import seed_of

LEVELS = 256

ELBO: Mapping[str, Scalar] = {"samples": 1}
"""Settings of ``elbo.parts``: codes drawn from the posterior of each image; 0 for its mean alone."""

MOST = 1000
"""Samples of an image."""


def quantised(images: Float[Tensor, "n c *s"]) -> Float[Tensor, "n c *s"]:
    """The nearest of 256 levels, in [0, 1]."""
    return (images.clamp(0, 1) * (LEVELS - 1)).round() / (LEVELS - 1)


def log_masses(x: Float[Tensor, "n c *s"], mean: Float[Tensor, "n c *s"], deviation: Float[Tensor, " *d"]) -> Float[Tensor, "n c *s"]:
    """Logarithm of the probability of each pixel's grey level, <= 0; differentiable.

    Args:
        x: in [0, 1], at 256 levels (``quantised``).
        mean: that the decoder gives, in the same scale.
        deviation: of the decoder, one number, or one a pixel.
    """
    half = 0.5 / (LEVELS - 1)
    low, high = (x - half - mean) / deviation, (x + half - mean) / deviation
    right = low > 0  # the right tail is turned to the left one, where the distribution function is exact
    near, far = torch.where(right, -low, high), torch.where(right, -high, low)
    top, bottom = torch.special.log_ndtr(near), torch.special.log_ndtr(far)
    inside = top + torch.log1p(-torch.exp((bottom - top).clamp_max(-1e-7)))
    inside = torch.where(x < half, torch.special.log_ndtr(high), inside)
    return torch.where(x > 1 - half, torch.special.log_ndtr(-low), inside)


def log_likelihood(x: Float[Tensor, "n c *s"], mean: Float[Tensor, "n c *s"], deviation: Float[Tensor, " *d"]) -> Float64[Tensor, " n"]:
    """``log p(x|z)`` in nats: the sum of ``log_masses`` over an image."""
    return log_masses(x, mean, deviation).double().flatten(1).sum(dim=1)


def divergence(mean: Float[Tensor, "n l"], log_variance: Float[Tensor, "n l"]) -> Float64[Tensor, " n"]:
    """``KL(N(mean, exp(log_variance)) | N(0, 1))`` in nats, >= 0."""
    m, v = mean.double(), log_variance.double()
    return 0.5 * (m.square() + v.exp() - 1 - v).sum(dim=1)


def elbo_parts(model: VAE, images: Float[Tensor, "n c *s"], settings: Mapping[str, Scalar], name: str) -> Float[Tensor, "n 3"]:
    """``E_q log p(x|z)`` over samples of the posterior, ``KL(q|p)``, both in nats, and the number of pixel values of the image.

    Codes are drawn from the image's own pixels. Their difference ``part 0 - part 1`` is the bound on ``log P(x)``.

    Raises:
        ConfigError: fewer than 0 samples, or more than 1,000.
    """
    samples = int(settings["samples"])
    if not 0 <= samples <= MOST:
        raise ConfigError(f"signal {name!r}: samples = {samples} must lie between 0 (the mean of the posterior) and {MOST}")
    x = quantised(images)
    mean, log_variance = model.encode(x)
    spread = (0.5 * log_variance).exp()
    noise = codes_of(x, max(1, samples), model.shape.latent) * min(1, samples)
    found = [log_likelihood(x, model.decode(mean + spread * noise[:, s]), model.deviation) for s in range(noise.shape[1])]
    count = mean.new_full((len(x),), math.prod(x.shape[1:]), dtype=torch.float64)
    return torch.stack([torch.stack(found).mean(dim=0), divergence(mean, log_variance), count], dim=1).float()


def codes_of(images: Float[Tensor, "n c *s"], count: int, width: int) -> Float[Tensor, "n k l"]:
    """Standard normal codes of each image, from a generator seeded with its pixels."""
    drawn = [torch.randn(count, width, generator=torch.Generator().manual_seed(seed_of(image))) for image in images]
    return torch.stack(drawn).to(images)


def compressed_bits(images: Float[Tensor, "n c *s"]) -> Float[Tensor, " n"]:
    """Size in bits of each image at 256 levels as a PNG file of compression level 9; the slices of a volume stand below each other.

    It holds some 460 bits of headers, the same for all images of a size, and differs by a few per cent between builds of Pillow.
    """
    levels = (quantised(images) * (LEVELS - 1)).to(torch.uint8).cpu().numpy()
    return torch.tensor([8.0 * _png(image) for image in levels]).to(images)


def _png(image: np.ndarray) -> int:
    from PIL import Image

    flat = np.moveaxis(image.reshape(len(image), -1, image.shape[-1]), 0, -1)
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(flat[..., 0] if len(image) == 1 else flat)).save(stream, "PNG", compress_level=9)
    return stream.tell()
