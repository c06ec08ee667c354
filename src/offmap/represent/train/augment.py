"""Random changes of images while a classifier is trained."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

Augment = Literal["light", "strong"]


def augmented(images: Float[Tensor, "n c h w"], how: Augment, rng: torch.Generator) -> Float[Tensor, "n c h w"]:
    """Each image changed at random.

    ``light``: flipped along both axes, and shifted by up to an eighth of its side, mirrored at the border.

    ``strong``, after arXiv:2505.08604 section 4: flips, shifts, turns by any angle, scale 0.8 to 1.2, shear up to 10 degrees, brightness
    up to 32/255, then one change of tone (contrast, gamma, inversion above a threshold, fewer grey levels or none; the colour operations
    of AutoAugment), and a black square of 16/224 of the side at any place (Cutout).

    Args:
        images: in [0, 1].
        rng: on the CPU, so that a seed gives the same on every device.
    """
    if how == "light":
        return _moved(images, rng)
    return _cut(_toned(_moved(images, rng, turn=math.pi, scale=0.2, shear=math.radians(10)), rng), rng)


def _moved(
    images: Float[Tensor, "n c h w"], rng: torch.Generator, turn: float = 0.0, scale: float = 0.0, shear: float = 0.0
) -> Float[Tensor, "n c h w"]:
    n, channels, height, width = images.shape
    draws = torch.rand(n, 4, generator=rng)
    flips = torch.where(draws[:, :2] < 0.5, -1.0, 1.0)
    shift = 0.5 * (draws[:, 2:] - 0.5)
    theta = torch.diag_embed(flips)
    if turn or scale or shear:
        angle, lean, size = ((2 * torch.rand(n, generator=rng) - 1) * most for most in (turn, shear, scale))
        rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(n, 2, 2)
        sheared = torch.eye(2).repeat(n, 1, 1)
        sheared[:, 0, 1] = lean.tan()
        theta = rotation @ sheared @ theta / (1 + size).view(-1, 1, 1)
    whole = torch.cat([theta, shift.unsqueeze(2)], dim=2).to(images.device)
    grid = functional.affine_grid(whole, [n, channels, height, width], align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _toned(images: Float[Tensor, "n c h w"], rng: torch.Generator) -> Float[Tensor, "n c h w"]:
    n = len(images)
    draws = torch.rand(n, 3, generator=rng).to(images.device)
    light, kind, amount = (draws[:, k].view(-1, 1, 1, 1) for k in range(3))
    images = (images + (2 * light - 1) * 32 / 255).clamp(0, 1)
    middle = images.mean(dim=(1, 2, 3), keepdim=True)
    contrast = (images - middle) * (0.3 + 1.4 * amount) + middle
    gamma = images.clamp_min(1e-4).pow((2 * amount - 1).exp())
    solarised = torch.where(images > 0.4 + 0.6 * amount, 1 - images, images)
    levels = 2 ** (2 + (4 * amount).floor()) - 1
    coarse = (images * levels).round() / levels
    for index, changed in enumerate((contrast, gamma, solarised, coarse)):
        images = torch.where((kind * 5).floor() == index, changed, images)
    return images.clamp(0, 1)


def _cut(images: Float[Tensor, "n c h w"], rng: torch.Generator) -> Float[Tensor, "n c h w"]:
    height, width = images.shape[2:]
    centre = torch.rand(len(images), 2, generator=rng).to(images.device)
    rows = (torch.arange(height, device=images.device) + 0.5) / height
    columns = (torch.arange(width, device=images.device) + 0.5) / width
    inside = (rows - centre[:, :1]).abs().le(8 / 224).unsqueeze(2) & (columns - centre[:, 1:]).abs().le(8 / 224).unsqueeze(1)
    return images.masked_fill(inside.unsqueeze(1), 0.0)
