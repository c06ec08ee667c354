"""One pixel spacing for all images."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from offmap.core.errors import ConfigError, ReadError
from offmap.core.types import Image
from offmap.prepare.preparation import Step
from offmap.prepare.resampler import resample
from offmap.prepare.resize import on_grid

LARGEST = 2**28
"""Most pixels that a file's spacing may make of an image."""


@dataclass(frozen=True)
class Resample(Step):
    """Resample to a pixel spacing in mm, antialiased; the field of view stays (so the spacing is met to half a pixel).

    Args:
        mm: new spacing of rows and columns.
        between: new distance of the slices of a volume; None keeps them.
        missing: what to do with an image whose file gives no spacing: ``refuse`` it (``bad_geometry``), or ``keep`` its
            pixels as they are.
    """

    mm: float = 1.0
    between: float | None = None
    missing: Literal["refuse", "keep"] = "refuse"

    def __post_init__(self) -> None:
        for name in ("mm", "between"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"resample: {name} = {value} must be positive")

    def __call__(self, image: Image) -> Image:
        """As ``Step``; refused are missing or impossible spacings (``bad_geometry``) and results too large (``bomb``)."""
        spacing = image.spacing
        if spacing is None:
            if self.missing == "keep":
                return image
            raise ReadError("bad_geometry", "the file gives no pixel spacing; set missing = 'keep' in prepare.resample to take it as it is")
        if len(spacing) != len(image.spatial) or not all(math.isfinite(s) and s > 0 for s in spacing):
            raise ReadError("bad_geometry", f"the spacing {spacing} mm does not fit an image of {len(image.spatial)} axes")
        targets = (*((self.between or spacing[0],) if len(spacing) == 3 else ()), self.mm, self.mm)
        ratios = [n * old / new for n, old, new in zip(image.spatial, spacing, targets, strict=True)]
        if math.prod(max(1.0, r) for r in ratios) > LARGEST:
            raise ReadError("bomb", f"spacing {spacing} mm resampled to {targets} mm would give more than {LARGEST} pixels")
        size = tuple(max(1, round(r)) for r in ratios)
        return on_grid(image, resample(image.pixels.astype(np.float32, copy=False), size))

    def describe(self) -> str:
        """In words."""
        slices = f", slices to {self.between:g} mm" if self.between is not None else ""
        without = "refused" if self.missing == "refuse" else "kept as they are"
        return f"resampled to {self.mm:g} mm per pixel{slices}; images without a spacing are {without}"
