"""Percentiles of the foreground to [0, 1]: for numbers without a unit (MR, 16-bit X-ray)."""

import dataclasses
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Shaped

from offmap.core.errors import ConfigError, ReadError
from offmap.core.types import Image
from offmap.prepare.preparation import Step


@dataclass(frozen=True)
class Percentile(Step):
    """Rescale so that two percentiles of the foreground become 0 and 1; what lies outside is clipped.

    Foreground = pixels above the image's lowest value, so that black padding does not count. All channels share one
    scale. Each item has its own percentiles: a slice its own, a volume (``--volumes``) one for all its slices.

    Args:
        low, high: percentiles, 0 <= low < high <= 100.
    """

    low: float = 0.5
    high: float = 99.5

    def __post_init__(self) -> None:
        check_percentiles(self.low, self.high)

    def __call__(self, image: Image) -> Image:
        """As ``Step``; ``non_finite`` and ``constant`` are refused."""
        return dataclasses.replace(image, pixels=rescale(image.pixels, self.low, self.high))

    def describe(self) -> str:
        """In words."""
        return f"the {self.low:g}th and {self.high:g}th percentile of the foreground become 0 and 1"


def check_percentiles(low: float, high: float) -> None:
    """Refuse an empty or impossible range with a ConfigError."""
    if not 0 <= low < high <= 100:
        raise ConfigError(f"percentiles low = {low}, high = {high} must fulfil 0 <= low < high <= 100")


def rescale(pixels: Shaped[np.ndarray, "c *s"], low: float, high: float) -> Float32[np.ndarray, "c *s"]:
    """Two percentiles of the pixels above the minimum become 0 and 1; the rest is clipped.

    Where both percentiles are one value (a drawing in black and white), the image's own minimum and maximum are taken.

    Raises:
        ReadError: ``non_finite``, or ``constant``.
    """
    least, most = float(pixels.min()), float(pixels.max())
    if not (np.isfinite(least) and np.isfinite(most)):
        raise ReadError("non_finite", "the image holds NaN or infinite pixels")
    if least == most:
        raise ReadError("constant", f"all pixels have the value {least:.6g}")
    black, white = (float(v) for v in np.percentile(pixels[pixels > least], [low, high]))
    return linear(pixels, black, white) if white > black else linear(pixels, least, most)


def linear(pixels: Shaped[np.ndarray, "c *s"], black: float, white: float) -> Float32[np.ndarray, "c *s"]:
    """``black`` becomes 0, ``white`` becomes 1, what lies outside is clipped."""
    scaled: np.ndarray = pixels.astype(np.float32 if np.can_cast(pixels.dtype, np.float32) else np.float64)
    return np.clip((scaled - black) * (1.0 / (white - black)), 0.0, 1.0).astype(np.float32)
