"""Noise of few large spots, which a network that takes it away learns to see as what does not belong (Kascenas et al., 2301.08330)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

MODE = {2: "bilinear", 3: "trilinear"}


def coarse_noise(size: tuple[int, ...], *, deviation: float, grid: int, generator: torch.Generator) -> Float[Tensor, "n c *s"]:
    """Gaussian noise of mean 0 on a grid of ``grid`` points an axis, interpolated to the image, and rolled by a random offset.

    Args:
        size: of the batch, ``(N, C, *S)``.
        deviation: at the points of the grid.
        grid: points an axis, at most one a pixel.
    """
    space = size[2:]
    points = torch.randn(*size[:2], *(min(grid, n) for n in space), generator=generator)
    smooth = functional.interpolate(deviation * points, space, mode=MODE[len(space)], align_corners=False)
    offsets = torch.stack([torch.randint(n, (size[0],), generator=generator) for n in space], dim=1).tolist()
    axes = tuple(range(1, len(space) + 1))
    return torch.stack([torch.roll(field, offset, axes) for field, offset in zip(smooth, offsets, strict=True)])


def foreground(images: Float[Tensor, "n c *s"], threshold: float) -> Bool[Tensor, "n 1 *s"]:
    """Where the mean of the channels is above a threshold."""
    return images.mean(dim=1, keepdim=True) > threshold
