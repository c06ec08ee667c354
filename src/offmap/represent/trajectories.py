"""Signals along the path between an image and noise: norms at each level, inversion, reconstruction, inpainting.

The path is the probability-flow equation ``dx / d sigma = (x - D(x, sigma)) / sigma`` (Karras et al., NeurIPS 2022, eq. 1 and 3), in
Euler steps, which are the deterministic steps of DDIM (Song et al., ICLR 2021) for images scaled as here.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.core.signals import Scalar
from offmap.represent.denoiser import Denoiser
from offmap.represent.noised import denoised, levels_of, mean_over, noise_of

Clean = Float[Tensor, "n c *s"]

MSMA: Mapping[str, Scalar] = {"levels": 10, "low": 0.02, "high": 10.0, "noised": True}
DIFFPATH: Mapping[str, Scalar] = {"levels": 10, "low": 0.02, "high": 10.0}
MULTI_NOISE: Mapping[str, Scalar] = {"levels": 10, "every": 2, "low": 0.02, "high": 10.0}
PROJECTION: Mapping[str, Scalar] = {"levels": 3, "low": 0.2, "high": 2.0, "repeats": 2}
LMD: Mapping[str, Scalar] = {"levels": 10, "low": 0.02, "high": 10.0, "cells": 8, "repeats": 1}


def msma_norms(denoise: Denoiser, clean: Clean, settings: Mapping[str, Scalar], name: str) -> Float[Tensor, "n l"]:
    """``|x - D(x, sigma)| / (sigma sqrt(d))`` at each level: the norm of the score in units of what pure noise has.

    ``noised``: of the image with noise, as the model has seen images; else of the image itself.
    """
    sigmas = levels_of(name, int(settings["levels"]), float(settings["low"]), float(settings["high"])).tolist()
    noise = noise_of(clean, len(sigmas)) if settings["noised"] else torch.zeros(len(clean), len(sigmas), *[1] * (clean.ndim - 1)).to(clean)
    out = []
    for i, sigma in enumerate(sigmas):
        x = clean + sigma * noise[:, i]
        out.append(mean_over((x - denoised(denoise, x, sigma)).square()).sqrt() / sigma)
    return torch.stack(out, dim=1).float()


def diffpath_moments(denoise: Denoiser, clean: Clean, settings: Mapping[str, Scalar], name: str) -> Float[Tensor, "n 6"]:
    """Means of e, e^2, e^3 and of e', e'^2, e'^3 over levels, channels and space.

    ``e_i = (x_i - D(x_i)) / sigma_i`` along the path from the image to noise, ``e'_i = L (e_{i+1} - e_i)`` with L levels.
    """
    sigmas = levels_of(name, int(settings["levels"]), float(settings["low"]), float(settings["high"])).tolist()
    if len(sigmas) < 2:
        raise ConfigError(f"signal {name!r}: levels = {len(sigmas)} must be at least 2")
    x, before = clean, None
    own, change = clean.new_zeros(len(clean), 3, dtype=torch.float64), clean.new_zeros(len(clean), 3, dtype=torch.float64)
    for sigma, following in zip(sigmas, [*sigmas[1:], sigmas[-1]], strict=True):
        direction = (x - denoised(denoise, x, sigma)) / sigma
        own += _powers(direction) / len(sigmas)
        if before is not None:
            change += _powers(len(sigmas) * (direction - before)) / (len(sigmas) - 1)
        x, before = x + (following - sigma) * direction, direction
    return torch.cat([own, change], dim=1).float()


def multi_noise_errors(denoise: Denoiser, clean: Clean, settings: Mapping[str, Scalar], name: str) -> Float[Tensor, "n k"]:
    """Mean squared difference between the image and what comes back from noise of each starting level.

    Levels ``every`` apart are starts, the highest among them; from each the path is walked down all lower levels to 0.
    """
    sigmas = levels_of(name, int(settings["levels"]), float(settings["low"]), float(settings["high"])).tolist()
    every = int(settings["every"])
    if not 1 <= every <= len(sigmas):
        raise ConfigError(f"signal {name!r}: every = {every} must lie between 1 and the {len(sigmas)} levels")
    starts = range((len(sigmas) - 1) % every, len(sigmas), every)
    noise = noise_of(clean, len(starts))
    found = [_walked_down(denoise, clean + sigmas[start] * noise[:, i], sigmas[: start + 1]) for i, start in enumerate(starts)]
    return torch.stack([mean_over((back - clean).square()) for back in found], dim=1).float()


def projection_regrets(denoise: Denoiser, clean: Clean, settings: Mapping[str, Scalar], name: str) -> Float[Tensor, "n l"]:
    """``d(x, P(x)) - d(P(x), P(P(x)))`` at each level, d the mean squared difference, mean over repeats.

    ``P(x) = D(x + sigma n, sigma)`` is one step of the denoiser in place of the paper's consistency model.
    """
    sigmas = levels_of(name, int(settings["levels"]), float(settings["low"]), float(settings["high"])).tolist()
    repeats = int(settings["repeats"])
    if not 1 <= repeats <= 100:
        raise ConfigError(f"signal {name!r}: repeats = {repeats} must lie between 1 and 100")
    noise, out = noise_of(clean, 2 * len(sigmas) * repeats), []
    for i, sigma in enumerate(sigmas):
        regret = clean.new_zeros(len(clean), dtype=torch.float64)
        for r in range(repeats):
            at = 2 * (i * repeats + r)
            once = denoised(denoise, clean + sigma * noise[:, at], sigma)
            twice = denoised(denoise, once + sigma * noise[:, at + 1], sigma)
            regret += (mean_over((clean - once).square()) - mean_over((once - twice).square())) / repeats
        out.append(regret)
    return torch.stack(out, dim=1).float()


def lmd_map(denoise: Denoiser, clean: Clean, settings: Mapping[str, Scalar], name: str) -> Float[Tensor, "n 1 *s"]:
    """Squared difference between the image and what is inpainted from its surroundings, mean over channels and repeats.

    A checkerboard of ``cells`` fields along each axis hides half of the image, and its negative the other half; at each step of the
    path down, what is not hidden is the image with its noise.
    """
    sigmas = levels_of(name, int(settings["levels"]), float(settings["low"]), float(settings["high"])).tolist()
    cells, repeats = int(settings["cells"]), int(settings["repeats"])
    if not 2 <= cells <= min(clean.shape[2:]) or not 1 <= repeats <= 100:
        raise ConfigError(
            f"signal {name!r}: cells = {cells} (2 to the image's {min(clean.shape[2:])} pixels), repeats = {repeats} (1 to 100)"
        )
    hidden = checkerboard(tuple(clean.shape[2:]), cells).to(clean.device)
    noise = noise_of(clean, repeats)
    total = torch.zeros_like(clean[:, :1])
    for i in range(repeats):
        for mask in (hidden, ~hidden):
            x = clean + sigmas[-1] * noise[:, i]
            for sigma, lower in zip(reversed(sigmas), [*reversed(sigmas[:-1]), 0.0], strict=True):
                seen = torch.where(mask, x, clean + sigma * noise[:, i])
                x = _down(denoise, seen, sigma, lower)
            total += torch.where(mask, (x - clean).square().mean(dim=1, keepdim=True), 0.0)
    return total / repeats


def lmd_errors(denoise: Denoiser, clean: Clean, settings: Mapping[str, Scalar], name: str) -> Float[Tensor, " n"]:
    """Mean of ``lmd_map``."""
    return mean_over(lmd_map(denoise, clean, settings, name)).float()


def checkerboard(shape: tuple[int, ...], cells: int) -> Bool[Tensor, "*s"]:
    """True in every other field of ``cells`` along each axis."""
    places = [torch.div(torch.arange(n) * cells, n, rounding_mode="floor") for n in shape]
    total = sum(torch.meshgrid(*places, indexing="ij"))
    return torch.as_tensor(total) % 2 == 0


def _walked_down(denoise: Denoiser, x: Tensor, sigmas: list[float]) -> Tensor:
    for sigma, lower in zip(reversed(sigmas), [*reversed(sigmas[:-1]), 0.0], strict=True):
        x = _down(denoise, x, sigma, lower)
    return x


def _down(denoise: Denoiser, x: Tensor, sigma: float, lower: float) -> Tensor:
    """One Euler step of the path; to level 0 it is the denoised image."""
    mean = denoised(denoise, x, sigma)
    return mean + (lower / sigma) * (x - mean)


def _powers(values: Tensor) -> Tensor:
    """Means of the first three powers of each image in float64, (N, 3)."""
    v = values.double().flatten(1)
    return torch.stack([v.mean(dim=1), v.square().mean(dim=1), v.pow(3).mean(dim=1)], dim=1)
