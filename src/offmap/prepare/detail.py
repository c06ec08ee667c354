"""One level of detail for all images, whatever the size and compression of their files."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from offmap.core.errors import ConfigError
from offmap.core.types import Image
from offmap.prepare.preparation import Step
from offmap.prepare.resampler import resample
from offmap.prepare.resize import SMALLEST, on_grid, refuse_small


@dataclass(frozen=True)
class Detail(Step):
    """Keep detail down to one level: Lanczos resampling to ``size``, then a light smoothing over three pixels.

    A copy of half the size, or one saved as JPEG, lacks fine detail that the original has; so do older detectors and
    export programs. What only some files hold tells how a file was made and not what it shows. The Lanczos filter cuts
    at the same place whatever the size of the file; the smoothing hides what is left at the cut. Sides of 2 ``size`` and
    more may be halved without effect; detail finer than one new pixel is never seen, which is the price.

    Args:
        size: height and width of the grid that holds the detail, in pixels; the next ``resize`` enlarges from it.
        smooth: weight of each neighbour on an axis, in [0, 0.25] (0 = none).
    """

    size: int = 112
    smooth: float = 0.15

    def __post_init__(self) -> None:
        if not 16 <= self.size <= 8192 or not 0 <= self.smooth <= 0.25:
            raise ConfigError(f"detail: size = {self.size} must lie in 16..8192 and smooth = {self.smooth} in 0..0.25")

    def __call__(self, image: Image) -> Image:
        """As ``Step``; images with a side below 16 pixels are refused as ``small``."""
        refuse_small(image, SMALLEST)
        pixels = image.pixels.astype(np.float32, copy=False)
        low, high = pixels.min(), pixels.max()
        small = resample(pixels, (*image.spatial[:-2], self.size, self.size), sharp=True)
        small = self._smoothed(self._smoothed(small).swapaxes(-2, -1)).swapaxes(-2, -1)
        return on_grid(image, np.clip(small, low, high, out=np.empty(small.shape, dtype=np.float32)))

    def describe(self) -> str:
        """In words."""
        return f"detail of at most {self.size} x {self.size} pixels is kept, whatever the size of the file"

    def _smoothed(self, pixels: Float32[np.ndarray, "c *s"]) -> Float32[np.ndarray, "c *s"]:
        """Smoothed along the last axis, edges repeated."""
        side = np.float32(self.smooth) * pixels
        smoothed = pixels - 2 * side
        smoothed[..., 1:] += side[..., :-1]
        smoothed[..., :-1] += side[..., 1:]
        smoothed[..., 0] += side[..., 0]
        smoothed[..., -1] += side[..., -1]
        return smoothed
