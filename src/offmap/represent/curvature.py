"""Signals of how the denoiser changes with its input: trace and leading eigenvalues of its Jacobian, shifts, gradients.

With Tweedie's formula the Jacobian is the posterior covariance of the clean image divided by ``sigma^2``.
"""

import functools
import itertools
import warnings
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from offmap.core.errors import ConfigError
from offmap.core.signals import Scalar
from offmap.represent.denoiser import Denoiser
from offmap.represent.noised import denoised, levels_of, mean_over, noise_of, signs_of

Clean = Float[Tensor, "n c *s"]

SCOPED: Mapping[str, Scalar] = {"levels": 2, "low": 0.05, "high": 1.25, "probes": 1}
EIGENSCORE: Mapping[str, Scalar] = {"levels": 3, "low": 0.3, "high": 1.25, "vectors": 3, "iterations": 3, "repeats": 1}
GEPC: Mapping[str, Scalar] = {"levels": 3, "low": 0.1, "high": 1.0, "shift": 1}
GRADIENT: Mapping[str, Scalar] = {"levels": 3, "low": 0.1, "high": 1.0}

PROBES, DIRECTIONS = 0x5C0BED, 0xE16E2
"""Salts: other random numbers than the noise."""

LEAST_TRACE = 1e-3
"""Least size of the trace of the score's Jacobian as a share of that of pure noise, below which it counts as that."""


def with_change(denoise: Denoiser, x: Clean, sigma: float, direction: Clean) -> tuple[Clean, Clean]:
    """``D(x)`` and ``J v``: the exact directional derivative, by forward-mode differentiation."""
    _forward_mode()
    levels = x.new_full((len(x),), sigma)
    mean, change = torch.func.jvp(lambda z: denoise(z, levels), (x,), (direction,))[:2]
    return mean, change


@functools.cache
def _forward_mode() -> None:
    """Load torch's forward-mode differentiation, which warns of deprecated parts of its own the first time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.func.jvp(torch.sin, (torch.zeros(()),), (torch.zeros(()),))


def scoped_ratios(denoise: Denoiser, clean: Clean, settings: Mapping[str, Scalar], name: str) -> Float[Tensor, "n l"]:
    """``|s|^2 / tr(ds/dx)`` of the score s at each level; the trace from random signs (Hutchinson).

    Near -1 where the image is typical of the model (Stein's identity). One pass with one derivative a level and probe.
    """
    sigmas = levels_of(name, int(settings["levels"]), float(settings["low"]), float(settings["high"])).tolist()
    probes = int(settings["probes"])
    if not 1 <= probes <= 1000:
        raise ConfigError(f"signal {name!r}: probes = {probes} must lie between 1 and 1000")
    noise, signs, size = noise_of(clean, len(sigmas)), signs_of(clean, probes, salt=PROBES), clean[0].numel()
    out = []
    for i, sigma in enumerate(sigmas):
        x = clean + sigma * noise[:, i]
        found = [with_change(denoise, x, sigma, signs[:, k]) for k in range(probes)]
        trace = torch.stack([mean_over(signs[:, k] * change) for k, (_, change) in enumerate(found)]).mean(dim=0)
        slope = size * (trace - 1) / sigma**2
        least = LEAST_TRACE * size / sigma**2
        slope = torch.where(slope.abs() < least, torch.where(slope > 0, least, -least), slope)
        out.append(size * mean_over((found[0][0] - x).square()) / sigma**4 / slope)
    return torch.stack(out, dim=1).float()


def eigenscore_values(denoise: Denoiser, clean: Clean, settings: Mapping[str, Scalar], name: str) -> Float[Tensor, "n l"]:
    """Sum of the leading eigenvalues of the posterior covariance ``sigma^2 dD/dx`` at each level, mean over repeats.

    Block power iteration: ``V <- QR(J V)``, eigenvalues ``sigma^2 |J v|`` of the last one.
    """
    sigmas = levels_of(name, int(settings["levels"]), float(settings["low"]), float(settings["high"])).tolist()
    vectors, iterations, repeats = (int(settings[key]) for key in ("vectors", "iterations", "repeats"))
    if not 1 <= vectors <= min(64, clean[0].numel()) or not 1 <= iterations <= 1000 or not 1 <= repeats <= 100:
        raise ConfigError(
            f"signal {name!r}: vectors = {vectors} (1 to 64), iterations = {iterations} (1 to 1000), repeats = {repeats} (1 to 100)"
        )
    noise = noise_of(clean, len(sigmas) * repeats)
    first = noise_of(clean, vectors, salt=DIRECTIONS)
    out = []
    for i, sigma in enumerate(sigmas):
        found = [_leading(denoise, clean + sigma * noise[:, i * repeats + r], sigma, first, iterations) for r in range(repeats)]
        out.append(sigma**2 * torch.stack(found).mean(dim=0))
    return torch.stack(out, dim=1).float()


def gepc_map(denoise: Denoiser, clean: Clean, settings: Mapping[str, Scalar], name: str) -> Float[Tensor, "n 1 *s"]:
    """As ``gepc_levels``, mean over levels; positions nearer to the border than the shift take the value beside them."""
    found = _shifted(denoise, clean, settings, name).mean(dim=1, keepdim=True)
    return functional.pad(found, [int(settings["shift"])] * (2 * (clean.ndim - 2)), mode="replicate").float()


def gepc_errors(denoise: Denoiser, clean: Clean, settings: Mapping[str, Scalar], name: str) -> Float[Tensor, "n l"]:
    """``sigma^2 |g^-1 s(g x) - s(x)|^2`` at each level, mean over positions, channels and shifts g by ``shift`` pixels along each axis.

    Small shifts are what anatomy is symmetric under; flips are not. Beyond the image its border goes on; only positions further from
    the border than the shift count.
    """
    return _shifted(denoise, clean, settings, name).double().flatten(2).mean(dim=2).float()


def _shifted(denoise: Denoiser, clean: Clean, settings: Mapping[str, Scalar], name: str) -> Float[Tensor, "n l *t"]:
    """Errors at the inner positions."""
    sigmas = levels_of(name, int(settings["levels"]), float(settings["low"]), float(settings["high"])).tolist()
    shift, sides = int(settings["shift"]), tuple(clean.shape[2:])
    if not shift >= 1 or 2 * shift >= min(sides):
        raise ConfigError(f"signal {name!r}: shift = {shift} must be at least 1 and less than half of the image's {min(sides)} pixels")
    noise = noise_of(clean, len(sigmas))
    moves = [
        tuple(way if a == axis else 0 for a in range(len(sides))) for axis, way in itertools.product(range(len(sides)), (-shift, shift))
    ]
    out = []
    for i, sigma in enumerate(sigmas):
        x = clean + sigma * noise[:, i]
        own = _window(denoised(denoise, x, sigma), [shift] * len(sides), shift)
        wide = functional.pad(x, [shift] * (2 * len(sides)), mode="replicate")
        total = torch.zeros_like(own[:, 0])
        for move in moves:
            seen = denoised(denoise, _window(wide, [shift + o for o in move], shift).contiguous(), sigma)
            back = _window(seen, [shift - o for o in move], shift)
            total += (back - own).square().mean(dim=1) / (sigma**2 * len(moves))
        out.append(total)
    return torch.stack(out, dim=1)


def gradient_norms(denoise: Denoiser, clean: Clean, settings: Mapping[str, Scalar], name: str) -> Float[Tensor, " n"]:
    """``|dL/dx| / sqrt(d)`` of the denoising loss ``L = (1/2) sum_l |D(x + sigma_l n, sigma_l) - x|^2 / sigma_l^2``, mean over levels.

    L is the part of the negative evidence bound that depends on the image; one pass forward and one back a level.
    """
    sigmas = levels_of(name, int(settings["levels"]), float(settings["low"]), float(settings["high"])).tolist()
    noise, total = noise_of(clean, len(sigmas)), torch.zeros_like(clean)
    for i, sigma in enumerate(sigmas):
        with torch.enable_grad():
            x = clean.detach().clone().requires_grad_()
            loss = 0.5 * (denoised(denoise, x + sigma * noise[:, i], sigma) - x).square().sum() / sigma**2
            total += torch.autograd.grad(loss, x)[0] / len(sigmas)
    return mean_over(total.square()).sqrt().float()


def _window(x: Tensor, starts: Sequence[int], shift: int) -> Tensor:
    """The part of the grid that is ``2 shift`` shorter along each axis and begins at the given place."""
    for axis, start in enumerate(starts, 2):
        x = x.narrow(axis, start, x.shape[axis] - 2 * shift)
    return x


def _leading(denoise: Denoiser, x: Tensor, sigma: float, first: Tensor, iterations: int) -> Float[Tensor, " n"]:
    """Sum of the leading eigenvalues of the Jacobian."""
    vectors = _orthonormal(first)
    sizes = vectors.new_zeros(vectors.shape[:2])
    for _ in range(iterations):
        changed = torch.stack([with_change(denoise, x, sigma, vectors[:, k])[1] for k in range(vectors.shape[1])], dim=1)
        sizes = changed.flatten(2).double().norm(dim=2)
        vectors = _orthonormal(changed)
    return sizes.sum(dim=1)


def _orthonormal(vectors: Float[Tensor, "n k c *s"]) -> Float[Tensor, "n k c *s"]:
    columns = vectors.flatten(2).transpose(1, 2).double()
    basis: Tensor = torch.linalg.qr(columns).Q
    return basis.transpose(1, 2).reshape(vectors.shape).to(vectors)
