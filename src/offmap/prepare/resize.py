"""One size for all images."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from offmap.core.errors import ConfigError, ReadError
from offmap.core.types import Image
from offmap.prepare.preparation import Step
from offmap.prepare.resampler import resample, resample_mask

SMALLEST = 16
"""Shortest side in pixels that is worth a score, unless a recipe says another."""

FEWEST = 2
"""Slices from which an image is a volume that can be resampled along its depth."""


@dataclass(frozen=True)
class Resize(Step):
    """Resample height and width to ``size``, antialiased; a sheet that is not square is stretched (crop it before).

    Args:
        size: new height and width in pixels.
        depth: new number of slices of a volume; None keeps them. Where it is given, images of one slice are refused as ``small``.
        smallest: images with a side (height or width) below this are refused as ``small``.
    """

    size: int = 160
    depth: int | None = None
    smallest: int = SMALLEST

    def __post_init__(self) -> None:
        for name in ("size", "depth", "smallest"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= 8192:
                raise ConfigError(f"resize: {name} = {value} must lie in 1..8192")

    def __call__(self, image: Image) -> Image:
        """As ``Step``; images below ``smallest``, or of one slice where a depth is given, are refused as ``small``."""
        refuse_small(image, self.smallest)
        if self.depth is not None and (len(image.spatial) == 2 or image.spatial[0] < FEWEST):
            raise ReadError("small", f"the image is a single slice; a volume of {FEWEST} slices or more is needed")
        pixels = image.pixels.astype(np.float32, copy=False)
        planes = () if len(image.spatial) == 2 else (self.depth or image.spatial[0],)
        return on_grid(image, resample(pixels, (*planes, self.size, self.size)))

    def describe(self) -> str:
        """In words."""
        if self.depth is not None:
            return f"resized to {self.depth} slices of {self.size} x {self.size} pixels, antialiased"
        return f"resized to {self.size} x {self.size} pixels, antialiased"


def on_grid(image: Image, pixels: np.ndarray) -> Image:
    """The image with its pixels resampled over the same field of view: spacing and mask follow."""
    new = tuple(int(n) for n in pixels.shape[1:])
    spacing = image.spacing
    if spacing is not None:
        spacing = tuple(mm * old / n for mm, old, n in zip(spacing, image.spatial, new, strict=True))
    mask = None if image.mask is None else resample_mask(image.mask, new)
    return dataclasses.replace(image, pixels=pixels, spacing=spacing, mask=mask)


def refuse_small(image: Image, smallest: int) -> None:
    """Refuse an image whose height or width is below ``smallest`` pixels.

    Raises:
        ReadError: ``small``.
    """
    if min(image.spatial[-2:]) < smallest:
        size = " x ".join(map(str, image.spatial))
        raise ReadError("small", f"the image is {size} pixels where it is scored; {smallest} are needed")
