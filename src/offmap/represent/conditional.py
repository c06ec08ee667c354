"""A diffusion model that knows classes: which class an image looks most like, and the denoiser told of it."""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from offmap.represent.denoiser import Denoiser
from offmap.represent.nets.unet import EDMDenoiser, loss_weight
from offmap.represent.noised import mean_over, noise_of

LEVELS = (0.5, 1.0, 2.0)
"""Deviations of the noise at which classes are compared: at lower ones the image itself tells."""

SALT = 0xC1A55
"""Other random numbers than those of the signals."""


def class_errors(net: EDMDenoiser, clean: Float[Tensor, "n c *s"]) -> Float64[Tensor, "n k"]:
    """Denoising loss of each class k, mean over levels: 3K passes."""
    noise, out = noise_of(clean, len(LEVELS), salt=SALT), []
    for k in range(net.shape.classes):
        label = torch.full((len(clean),), k, device=clean.device)
        errors = []
        for i, s in enumerate(LEVELS):
            sigma = clean.new_full((len(clean),), s)
            away = mean_over((net(clean + s * noise[:, i], sigma, label) - clean).square())
            errors.append(away * loss_weight(sigma, net.sigma_data).double())
        out.append(torch.stack(errors).mean(dim=0))
    return torch.stack(out, dim=1)


def likeliest(net: EDMDenoiser, clean: Float[Tensor, "n c *s"]) -> Int64[Tensor, " n"]:
    """The class under which each image is denoised best (Li et al., ICCV 2023, arXiv:2303.16203)."""
    return class_errors(net, clean).argmin(dim=1)


def told(net: EDMDenoiser, label: Int64[Tensor, " n"]) -> Denoiser:
    """The denoiser of n images whose classes it is told."""

    def denoise(x: Float[Tensor, "n c *s"], sigma: Float[Tensor, " n"]) -> Float[Tensor, "n c *s"]:
        found: Tensor = net(x, sigma, label)
        return found

    return denoise
