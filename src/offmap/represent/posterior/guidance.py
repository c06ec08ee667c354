"""The gradient of the likelihood of a measurement at a noise level, with and without going back through the network."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.represent.denoiser import Denoiser
from offmap.represent.operators.contract import Operator
from offmap.represent.posterior.contract import Draws, Level, Sampler


@dataclass(frozen=True, eq=False)
class Guided:
    """A pass through the network with its data term.

    Args:
        denoised: ``D(x, sigma)``.
        pull: with ``matched`` guidance the likelihood score ``grad_x log p(y | x_sigma)``; with ``dps`` the step itself, without its
            strength: ``J^T A^T r / |r|``.
        evaluations: passes; a backward pass counts as two.
    """

    denoised: Float[Tensor, "m c h w"]
    pull: Float[Tensor, "m c h w"]
    evaluations: int


def guided(
    sampler: Sampler, denoiser: Denoiser, x: Float[Tensor, "m c h w"], sigma: float, y: Float[Tensor, "m c *k"], operator: Operator
) -> Guided:
    """Denoise, compare with the measurement, and turn the difference into a pull on x.

    ``matched``: ``p(x0 | x_sigma)`` is taken as Gaussian about D with variance ``v = s^2 sigma^2 / (s^2 + sigma^2)``, so that
    ``p(y | x_sigma) = N(A D, v A A^T + noise^2)`` and the score is ``J^T A^T (v A A^T + noise^2)^-1 (y - A D)``. Derived here; exact for a
    Gaussian prior of variance ``s^2``. The size of a ``dps`` step is set by each image's own residual, not by the batch's mean.
    """
    levels = x.new_full((len(x),), sigma)
    size = (int(x.shape[2]), int(x.shape[3]))
    with torch.set_grad_enabled(sampler.backward):
        source = x.detach().requires_grad_(sampler.backward)
        denoised = denoiser(source, levels)
    with torch.no_grad():
        residual = y - operator.forward(denoised.detach())
        if sampler.guidance == "matched":
            prior = sampler.deviation**2
            back = operator.pull(residual, levels.square() * (prior / (prior + sigma**2)), size)
            jacobian = prior / (prior + sigma**2)
        else:
            norm = residual.flatten(1).norm(dim=1).clamp_min(1e-12)
            back, jacobian = operator.adjoint(residual, size) / norm.view(-1, 1, 1, 1), 1.0
    if not sampler.backward:
        return Guided(denoised, jacobian * back, 1)
    with torch.enable_grad():
        (pull,) = torch.autograd.grad((denoised * back).sum(), source)
    return Guided(denoised.detach(), pull, 3)


def ancestral(x: Float[Tensor, "m c h w"], denoised: Float[Tensor, "m c h w"], level: Level, draws: Draws) -> Float[Tensor, "m c h w"]:
    """A draw of ``x_below`` given ``x_sigma`` and a clean image at D: ``x + (sigma^2 - below^2) score + noise``.

    The reverse step of DDPM in variance-exploding form; its noise has the variance ``below^2 (sigma^2 - below^2) / sigma^2``.
    """
    share = level.length / level.sigma**2
    mean = x + share * (denoised - x)
    return mean + level.below * share**0.5 * draws.normal() if level.below > 0 else mean
