"""In-distribution images made strange on purpose, beyond ``damage.py``: lesions of graded size, and other "sites".

A site is one mild way of acquiring images, the same for every image of a set: gamma, contrast, brightness, blur, noise, field of
view, tilt. Eight sites are drawn once, seed 0.
"""

import dataclasses
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from damage import one
from scipy import ndimage

from offmap.core.types import Image
from offmap.prepare.preparation import Preparation
from offmap.simulate.lesions import LesionRanges, plant_lesion

GRADED = {
    "lesion_small": LesionRanges(radius=(0.03, 0.05), contrast=(0.15, 0.35)),
    "lesion_medium": LesionRanges(radius=(0.06, 0.1), contrast=(0.15, 0.35)),
    "lesion_large": LesionRanges(radius=(0.12, 0.2), contrast=(0.15, 0.35)),
    "opacity": LesionRanges(radius=(0.18, 0.3), contrast=(0.06, 0.18), edge=(0.6, 1.0)),
    "many": LesionRanges(radius=(0.02, 0.05), contrast=(0.1, 0.3)),
}
"""Drawn lesions, from small spots to wide faint opacities; ``many`` are six at once."""

MANY = 6
SITES = tuple(f"site_{i}" for i in range(8))


@dataclass(frozen=True)
class Site:
    """How a site acquires its images.

    Args:
        gamma: exponent.
        contrast: factor about the image's mean.
        brightness: added.
        blur: sigma, share of the shorter side.
        noise: standard deviation.
        zoom: how much of the border is lost, as a factor above 1.
        tilt: degrees.
    """

    gamma: float
    contrast: float
    brightness: float
    blur: float
    noise: float
    zoom: float
    tilt: float

    @classmethod
    def drawn(cls, name: str) -> "Site":
        """The site of a name; always the same."""
        rng = np.random.default_rng([0, zlib.crc32(name.encode())])
        return cls(
            gamma=float(np.exp(rng.uniform(-0.25, 0.25))),
            contrast=float(rng.uniform(0.85, 1.1)),
            brightness=float(rng.uniform(-0.04, 0.04)),
            blur=float(rng.uniform(0.0, 0.006)),
            noise=float(rng.uniform(0.0, 0.015)),
            zoom=float(rng.uniform(1.0, 1.12)),
            tilt=float(rng.uniform(-4.0, 4.0)),
        )

    def acquire(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The image ``(C, H, W)`` in [0, 1] as this site would have made it."""
        turned = np.stack([self._moved(plane) for plane in pixels.astype(np.float64)])
        bright = np.clip(turned, 0.0, 1.0) ** self.gamma
        mean = bright.mean(axis=(1, 2), keepdims=True)
        sigma = self.blur * min(pixels.shape[-2:])
        seen = ndimage.gaussian_filter(mean + (bright - mean) * self.contrast + self.brightness, (0.0, sigma, sigma), mode="nearest")
        return np.clip(seen + self.noise * rng.standard_normal(seen.shape), 0.0, 1.0).astype(np.float32)

    def _moved(self, plane: np.ndarray) -> np.ndarray:
        angle = np.deg2rad(self.tilt)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / self.zoom
        centre = (np.array(plane.shape) - 1) / 2
        moved: np.ndarray = ndimage.affine_transform(plane, turn, centre - turn @ centre, order=1, mode="nearest")
        return moved


def estranged(files: Sequence[Path], kind: str, early: Preparation) -> Iterator[Image]:
    """Each image with one lesion of a grade, or from one site; the same image and kind always give the same result."""
    site = Site.drawn(kind) if kind in SITES else None
    for path in files:
        image = early.apply(one(path))
        rng = np.random.default_rng(zlib.crc32(f"{kind}:{image.digest}".encode()))
        pixels = image.pixels
        if site is not None:
            pixels = site.acquire(pixels, rng)
        else:
            for _ in range(MANY if kind == "many" else 1):
                pixels = plant_lesion(pixels, rng=rng, ranges=GRADED[kind]).pixels
        yield dataclasses.replace(image, pixels=np.ascontiguousarray(pixels), digest="")
