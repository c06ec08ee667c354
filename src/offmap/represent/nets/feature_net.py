"""What small networks have in common that are trained on the feature maps of a frozen encoder."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from offmap.core.linalg import cholesky, shrunk
from offmap.core.moments import Moments
from offmap.represent.train.parallel import ALONE, Crew

Maps = Sequence[Tensor]
"""Feature maps ``(N, C, h, w)`` of one batch, by layer from shallow to deep."""

Shapes = tuple[tuple[int, int, int], ...]
"""Channels, height and width of each layer's map."""

MAX_SIDE = 40
"""Stacked maps have no longer side."""


class FeatureNet(nn.Module, ABC):
    """Learns the feature maps of normal images, and says how odd each position of other ones is."""

    def adapt(self, batches: Iterable[Maps]) -> None:
        """Take statistics of the training maps, before the first step; ``batches`` may be iterated more than once."""
        return

    @abstractmethod
    def loss(self, maps: Maps, rng: torch.Generator, crew: Crew = ALONE) -> Float[Tensor, ""]:
        """What training makes small.

        Args:
            maps: of this process's part of the batch.
            rng: source of noise, on the CPU, which is drawn for the whole batch.
        """

    @abstractmethod
    def oddness(self, maps: Maps) -> Float[Tensor, "n h w"]:
        """Of each position, higher = odder; an image's values do not depend on the batch in eval mode."""

    def of_image(self, oddness: Float[Tensor, "n h w"]) -> Float[Tensor, " n"]:
        """One number an image, by which checkpoints are judged."""
        return oddness.flatten(1).amax(dim=1)


class Stack(nn.Module):
    """Maps of several layers on the finest of their grids, channels stacked, centred, and divided by their deviations.

    Args:
        shapes: of the maps.
        smooth: average each map over 3 x 3 neighbours first.
        whiten: divide by the Cholesky factor of the covariance, shrunk by OAS, instead of by the deviations.
    """

    mean: Tensor
    factor: Tensor

    def __init__(self, shapes: Shapes, *, smooth: bool = False, whiten: bool = False) -> None:
        super().__init__()
        self.width = sum(channels for channels, _, _ in shapes)
        self.size = tuple(min(MAX_SIDE, max(shape[axis] for shape in shapes)) for axis in (1, 2))
        self.smooth, self.whiten = smooth, whiten
        self.register_buffer("mean", torch.zeros(self.width))
        self.register_buffer("factor", torch.eye(self.width) if whiten else torch.ones(self.width))

    def joined(self, maps: Maps) -> Float[Tensor, "n c h w"]:
        """As they are."""
        parts = [functional.avg_pool2d(m, 3, 1, 1, count_include_pad=False) if self.smooth else m for m in maps]
        return torch.cat([resized(part.float(), self.size) for part in parts], dim=1)

    def adapt(self, batches: Iterable[Maps]) -> None:
        """Mean and covariance over all positions of all images, as sums in float64."""
        total = reduce(Moments.merge, (Moments.of(self.joined(maps).movedim(1, -1).flatten(0, -2)) for maps in batches))
        covariance = shrunk(total.scatter, total.quartic, count=total.count, kind="oas")
        self.mean.copy_(total.mean)
        self.factor.copy_(cholesky(covariance) if self.whiten else covariance.diagonal().sqrt())

    def forward(self, maps: Maps) -> Float[Tensor, "n c h w"]:
        """Standardised."""
        rows = (self.joined(maps) - self.mean[:, None, None]).movedim(1, 0)
        if not self.whiten:
            return (rows / self.factor[:, None, None, None]).movedim(0, 1)
        solved: Tensor = torch.linalg.solve_triangular(self.factor, rows.flatten(1), upper=False)
        return solved.reshape(rows.shape).movedim(0, 1)


def resized(maps: Float[Tensor, "n c h w"], size: Sequence[int]) -> Float[Tensor, "n c a b"]:
    """Pooled where the grid is coarser, interpolated linearly where it is finer."""
    have = (int(maps.shape[2]), int(maps.shape[3]))
    smaller = (min(have[0], size[0]), min(have[1], size[1]))
    maps = functional.adaptive_avg_pool2d(maps, smaller) if smaller != have else maps
    return maps if smaller == tuple(size) else functional.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def places(size: Sequence[int], count: int, like: Tensor) -> Float[Tensor, "c h w"]:
    """Sines and cosines of row and column, ``count`` numbers a position (a multiple of 4)."""
    height, width = size
    rates = torch.pi * 2.0 ** torch.arange(count // 4, device=like.device, dtype=like.dtype)
    axes = [(torch.arange(n, device=like.device, dtype=like.dtype) + 0.5) / n for n in (height, width)]
    rows, columns = (rates[:, None] * axis for axis in axes)
    parts = [wave(rows)[:, :, None].expand(-1, height, width) for wave in (torch.sin, torch.cos)]
    parts += [wave(columns)[:, None].expand(-1, height, width) for wave in (torch.sin, torch.cos)]
    return torch.cat(parts)
