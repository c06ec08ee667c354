"""Random views of training images, made on their device from one generator on the CPU."""

import math

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional


def views(images: UInt8[Tensor, "n 3 h w"], size: int, generator: torch.Generator) -> Float[Tensor, "n 3 s s"]:
    """One view an image, in [0, 1].

    Geometry: nearly the whole frame (35 %) or a scale from 0.3 to 1, rotation, flips, aspect. Colour: random curves that give
    grey images a hue (38 %), contrast, brightness, channel gains, inversion (7 %), grey (6 %). Acquisition (6 of 11): noise,
    blur, gamma, pixelation, an intensity ramp. A quarter is blended with another image of the batch.

    Args:
        images: on any device.
        size: side of the views in pixels.
        generator: on the CPU, so that a seed gives the same views on every device.
    """
    pixels = functional.grid_sample(
        images.float() / 255,
        _grids(len(images), size, generator, images.device),
        mode="bilinear",
        padding_mode="reflection",
        align_corners=False,
    )
    pixels = _blend(pixels, generator)
    pixels = _colours(pixels, generator)
    return _acquire(pixels, generator).clamp_(0, 1)


def _uniform(count: int, low: float, high: float, generator: torch.Generator, like: Tensor) -> Float[Tensor, "n 1 1 1"]:
    return (torch.rand(count, generator=generator) * (high - low) + low).view(-1, 1, 1, 1).to(like.device)


def _chance(count: int, share: float, generator: torch.Generator, like: Tensor) -> Tensor:
    return _uniform(count, 0.0, 1.0, generator, like) < share


def _grids(n: int, size: int, generator: torch.Generator, device: torch.device) -> Float[Tensor, "n s s 2"]:
    r = torch.rand(n, 8, generator=generator)
    whole = r[:, 0] < 0.35
    scale = torch.where(whole, 0.9 + 0.1 * r[:, 1], 0.3 + 0.7 * r[:, 1])
    aspect = torch.exp((r[:, 2] - 0.5) * 0.5)
    angle = torch.where(whole, (r[:, 3] - 0.5) * 0.4, (r[:, 3] - 0.5) * 2 * math.pi)
    flip = torch.where(r[:, 4] < 0.5, -1.0, 1.0)
    sx, sy = scale * aspect.sqrt() * flip, scale / aspect.sqrt()
    tx, ty = (r[:, 5] * 2 - 1) * (1 - scale), (r[:, 6] * 2 - 1) * (1 - scale)
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack([torch.stack([sx * cos, -sy * sin, tx], 1), torch.stack([sx * sin, sy * cos, ty], 1)], 1)
    return functional.affine_grid(theta.to(device), [n, 3, size, size], align_corners=False)


def _blend(pixels: Tensor, generator: torch.Generator) -> Tensor:
    n = len(pixels)
    share = _uniform(n, 0.2, 0.8, generator, pixels) * _chance(n, 0.25, generator, pixels)
    other = pixels[torch.randperm(n, generator=generator).to(pixels.device)]
    return pixels * (1 - share) + other * share


def _colours(pixels: Tensor, generator: torch.Generator) -> Tensor:
    n = len(pixels)
    gamma = torch.exp((torch.rand(n, 3, 1, 1, generator=generator) - 0.5) * 2.5).to(pixels.device)
    low, high = (torch.rand(2, n, 3, 1, 1, generator=generator) * torch.tensor([0.4, 0.5]).view(2, 1, 1, 1, 1)).to(pixels.device)
    curved = low + (1 - high - low) * pixels.clamp(0, 1).pow(gamma)
    pixels = torch.where(_chance(n, 0.38, generator, pixels), curved, pixels)
    pixels = torch.where(_chance(n, 0.06, generator, pixels), pixels.mean(dim=1, keepdim=True).expand_as(pixels), pixels)
    middle = pixels.mean(dim=(1, 2, 3), keepdim=True)
    pixels = (pixels - middle) * _uniform(n, 0.65, 1.35, generator, pixels) + middle + _uniform(n, -0.12, 0.12, generator, pixels)
    gains = 1 + (torch.rand(n, 3, 1, 1, generator=generator).to(pixels.device) - 0.5) * 0.1
    return torch.where(_chance(n, 0.07, generator, pixels), 1 - pixels, pixels * gains).clamp(0, 1)


def _acquire(pixels: Tensor, generator: torch.Generator) -> Tensor:
    n, size = len(pixels), pixels.shape[-1]
    kind = torch.randint(0, 11, (n, 1, 1, 1), generator=generator).to(pixels.device)
    noise = torch.randn(pixels.shape, generator=generator).to(pixels.device) * _uniform(n, 0.01, 0.12, generator, pixels)
    soft = functional.avg_pool2d(functional.pad(pixels, (2, 2, 2, 2), mode="reflect"), 5, 1)
    coarse = functional.interpolate(functional.avg_pool2d(pixels, 4), size=(size, size), mode="nearest")
    gamma = pixels.clamp(1e-4, 1).pow(torch.exp(_uniform(n, -0.7, 0.7, generator, pixels)))
    axis = torch.linspace(-0.5, 0.5, size, device=pixels.device)
    ramp = (
        1
        + axis.view(1, 1, 1, -1) * _uniform(n, -0.8, 0.8, generator, pixels)
        + axis.view(1, 1, -1, 1) * _uniform(n, -0.8, 0.8, generator, pixels)
    )
    amount = _uniform(n, 0.2, 1.0, generator, pixels)
    for index, changed in enumerate((pixels + noise, soft, coarse, gamma, pixels * ramp)):
        pixels = torch.where(kind == index, pixels + amount * (changed - pixels), pixels)
    return pixels
