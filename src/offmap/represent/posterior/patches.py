"""A prior of patches with their position, as a denoiser of whole images."""

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError


@runtime_checkable
class PatchDenoiser(Protocol):
    """``D(patch, sigma, where)``, trained on patches of images in [-1, 1]."""

    def __call__(
        self, x: Float[Tensor, "k c p p"], sigma: Float[Tensor, " k"], where: Float[Tensor, "k 2 p p"]
    ) -> Float[Tensor, "k c p p"]:
        """Denoise patches.

        Args:
            where: row and column of each pixel in the whole image, from -1 (the first) to 1 (the last).
        """
        ...


@dataclass(frozen=True, eq=False)
class PatchPrior:
    """Whole images denoised patch by patch; the grid of patches is moved at each step of a sampler, so that no seam stays.

    Patches always lie inside the image: those at its border are pushed inwards, and the mean is taken where they overlap. PaDIS pads the
    image with zeros instead, and needs a network that has seen such borders.

    Args:
        net: of patches.
        patch: P, their side in pixels.
        moved: rows and columns by which each image's grid is moved, ``(N, 2)`` in [0, P); none: not at all.
    """

    net: PatchDenoiser
    patch: int
    moved: Int64[Tensor, "n 2"] | None = None

    def __post_init__(self) -> None:
        if self.patch < 2:
            raise ConfigError(f"patches: patch = {self.patch} must be at least 2")

    def at(self, moved: Int64[Tensor, "n 2"]) -> "PatchPrior":
        """The same with its grids moved."""
        return replace(self, moved=moved)

    def __call__(self, x: Float[Tensor, "n c h w"], sigma: Float[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
        """As of a ``Denoiser``.

        Raises:
            SignalError: the image is smaller than a patch, or grids are moved for another number of images.
        """
        n, c, height, width = x.shape
        if min(height, width) < self.patch:
            raise SignalError(f"patches: an image of {height} x {width} is smaller than a patch of {self.patch}")
        moved = torch.zeros(n, 2, dtype=torch.int64) if self.moved is None else self.moved
        if len(moved) != n:
            raise SignalError(f"patches: {n} images, but grids are moved for {len(moved)}")
        moved = moved.to(x.device)
        rows, columns = (starts(moved[:, axis], side, self.patch) for axis, side in enumerate((height, width)))
        near = torch.arange(self.patch, device=x.device)
        row = (rows[:, :, None, None, None] + near[:, None]).expand(-1, -1, columns.shape[1], -1, self.patch).flatten(0, 2)
        column = (columns[:, None, :, None, None] + near).expand(-1, rows.shape[1], -1, self.patch, -1).flatten(0, 2)
        image = torch.arange(n, device=x.device).repeat_interleave(rows.shape[1] * columns.shape[1])[:, None, None].expand_as(row)
        cut = x[image, :, row, column].movedim(-1, 1)
        where = torch.stack([2 * row / (height - 1) - 1, 2 * column / (width - 1) - 1], dim=1).to(x.dtype)
        clean = self.net(cut, sigma.repeat_interleave(rows.shape[1] * columns.shape[1]), where)
        at = (image * height + row) * width + column
        total = x.new_zeros(n * height * width, c).index_add(0, at.flatten(), clean.movedim(1, -1).flatten(0, 2))
        count = x.new_zeros(n * height * width).index_add(0, at.flatten(), x.new_ones(at.numel()))
        return (total / count[:, None]).reshape(n, height, width, c).movedim(-1, 1)


def starts(moved: Int64[Tensor, " n"], side: int, patch: int) -> Int64[Tensor, "n k"]:
    """First rows of patches that cover a side, the grid moved back by ``moved``, pushed inside."""
    count = -(-side // patch) + 1
    first = torch.arange(count, device=moved.device) * patch - moved[:, None]
    return first.clamp(0, side - patch)
