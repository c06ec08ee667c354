"""How far two diffusion models are apart on a set of images or measurements."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.represent.denoiser import Denoiser
from offmap.represent.posterior.contract import geometric
from offmap.represent.stochastic import seed_of


@dataclass(frozen=True, eq=False)
class Apart:
    """A divergence with the curve under which it is the area.

    Args:
        divergence: nats, of the first model from the second; not symmetric.
        sigmas: noise levels, rising.
        integrand: ``sigma^-3 E |D_p - D_q|^2`` at each, in nats for a unit of sigma.
        above: what is missing above the highest level, if the integrand falls as ``sigma^-3`` there.
        images: number of images.
    """

    divergence: float
    sigmas: Float64[Tensor, " t"]
    integrand: Float64[Tensor, " t"]
    above: float
    images: int


def measurement_kl(
    one: Denoiser,
    other: Denoiser,
    batches: Iterable[Float[Tensor, "_ c h w"]],
    *,
    sigmas: Sequence[float] | None = None,
    draws: int = 1,
) -> Apart:
    """``KL(p | q) = int sigma^-3 E_{x ~ p} |D_p(x + sigma n; sigma) - D_q(x + sigma n; sigma)|^2 d sigma``.

    The identity follows from ``d KL / d(sigma^2) = -1/2 E |s_p - s_q|^2`` and ``s = (D - x) / sigma^2`` (derived here, and checked with
    Gaussians; the weights of the paper's own equations could not be read). Both models see the same noise, drawn from each image's
    content; differences are raw, not rescaled to [0, 1] image by image, which would lose the scale. With back-projected measurements in
    place of x it is the measurement-domain form, and needs no clean images. The integral is a trapezoid rule over ln sigma.

    Network error is divided by ``sigma^3``, so that the lowest level must not be too low: look at the integrand.

    Args:
        one: p, of the images at hand.
        other: q.
        batches: images in [-1, 1], or back-projected measurements.
        sigmas: noise levels; 40 from 0.05 to 80 in constant ratio if not given.
        draws: noise draws of each image and level.

    Raises:
        ConfigError: levels that are not above 0 and all different, fewer than two, or no draw.
        SignalError: no image, or denoised images that are not finite.
    """
    levels = sorted(geometric(40, 80.0, 0.05)[:-1] if sigmas is None else sigmas)
    if len(levels) < 2 or levels[0] <= 0 or len(set(levels)) < len(levels) or draws < 1:
        raise ConfigError(
            f"measurement_kl: two noise levels or more, above 0 and all different, and draws = {draws} of 1 or more are needed"
        )
    total, count = torch.zeros(len(levels), dtype=torch.float64), 0
    for images in batches:
        total += _squares(one, other, images, levels, draws)
        count += len(images)
    if count == 0:
        raise SignalError("measurement_kl: there is no image")
    if not bool(torch.isfinite(total).all()):
        raise SignalError("measurement_kl: a network gives values that are not finite")
    at = torch.tensor(levels, dtype=torch.float64)
    mean = total / (count * draws)
    integrand = mean / at**3
    inside = float(torch.trapezoid(integrand * at, at.log()))
    return Apart(inside, at, integrand, float(mean[-1] / (2 * at[-1] ** 2)), count)


def _squares(
    one: Denoiser, other: Denoiser, images: Float[Tensor, "n c h w"], levels: Sequence[float], draws: int
) -> Float64[Tensor, " t"]:
    """``sum |D_p - D_q|^2`` over images and draws, at each level."""
    out = torch.zeros(len(levels), dtype=torch.float64)
    generators = [torch.Generator().manual_seed(seed_of(image)) for image in images]
    with torch.no_grad():
        for i, sigma in enumerate(levels):
            for _ in range(draws):
                noise = torch.stack([torch.randn(images.shape[1:], generator=g) for g in generators]).to(images)
                noised, level = images + sigma * noise, images.new_full((len(images),), sigma)
                out[i] += (one(noised, level) - other(noised, level)).double().square().sum().cpu()
    return out
