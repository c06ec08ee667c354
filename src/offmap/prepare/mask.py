"""Foreground: the body, without the dark around it."""

import dataclasses
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from offmap.core.errors import ConfigError, ReadError
from offmap.core.types import Image
from offmap.prepare.preparation import Step


@dataclass(frozen=True)
class Mask(Step):
    """Keep the largest bright component, holes filled; outside, pixels become 0 and nothing is scored (map NaN).

    For images with a dark background (MR, CT, fundus, ultrasound), after windowing. The threshold is Otsu's on the mean of the channels.

    Args:
        smallest: images whose foreground is a smaller share of the image are refused as ``constant``.
    """

    smallest: float = 0.01

    reference = "Otsu, IEEE Trans. SMC 9(1), 1979, eq. 12"

    def __post_init__(self) -> None:
        if not 0 <= self.smallest < 1:
            raise ConfigError(f"mask: smallest = {self.smallest} must lie in [0, 1)")

    def __call__(self, image: Image) -> Image:
        """As ``Step``; images without foreground are refused as ``constant``."""
        grey = image.pixels.mean(axis=0, dtype=np.float64)
        found = largest_filled(grey > otsu(grey))
        if image.mask is not None:
            found &= image.mask
        share = float(found.mean())
        if share <= self.smallest:
            raise ReadError("constant", f"the foreground is {share:.2%} of the image, more than {self.smallest:.2%} is needed")
        return dataclasses.replace(image, pixels=np.where(found, image.pixels, np.zeros((), image.pixels.dtype)), mask=found)

    def describe(self) -> str:
        """In words."""
        return "only the foreground is scored (Otsu's threshold, largest component, holes filled)"


def otsu(values: Float[np.ndarray, "*s"], bins: int = 256) -> float:
    """Threshold that best separates two classes of values: the largest between-class variance over a histogram.

    Of several equally good thresholds (an empty gap) it takes the middle. The foreground is ``values > threshold``.
    """
    counts, edges = np.histogram(values, bins=bins)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums[:-1] / below - (sums[-1] - sums[:-1]) / above) ** 2
    between = np.nan_to_num(between)
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
    return float((edges[best[0] + 1] + edges[best[-1] + 1]) / 2)


def largest_filled(mask: Bool[np.ndarray, "*s"]) -> Bool[np.ndarray, "*s"]:
    """The largest connected component with its holes filled, in a volume slice by slice."""
    from scipy import ndimage

    labels, count = ndimage.label(mask)
    if count == 0:
        return np.zeros_like(mask)
    sizes = np.bincount(labels.ravel())
    largest = labels == 1 + int(np.argmax(sizes[1:]))
    if mask.ndim == 2:
        return np.asarray(ndimage.binary_fill_holes(largest), dtype=bool)
    return np.stack([ndimage.binary_fill_holes(plane) for plane in largest])
