"""A trial without labels: does the model find anomalies that were drawn into images that it has not seen?"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from offmap.represent.denoiser import Denoiser
from offmap.simulate.anomalies import ANOMALIES
from offmap.simulate.lesions import LesionRanges, plant_lesion

MOST: Mapping[int, int] = {2: 96, 3: 32}
"""Images in a trial at most, by their axes of space."""

CHUNK: Mapping[int, int] = {2: 32, 3: 4}
"""Images at a time."""

LEVELS = (0.1, 0.25, 0.6)
"""Deviations of the noise at which images are denoised."""

LESIONS = LesionRanges(radius=(0.08, 0.2))


@dataclass(frozen=True, eq=False)
class Trial:
    """Held-out images, and the same with one anomaly each: a lesion, or a piece of another image pasted in one of three ways.

    Args:
        normal, odd: in [0, 1].
        noise: one field an image, the same for both.
    """

    normal: Float[Tensor, "n c *s"]
    odd: Float[Tensor, "n c *s"]
    noise: Float[Tensor, "n c *s"]

    @classmethod
    def of(cls, images: Float[Tensor, "n c *s"], seed: int) -> "Trial":
        """Draw the anomalies.

        Args:
            images: two or more; the first 96 are taken, of volumes the first 32.
        """
        rng = np.random.default_rng(seed)
        normal = images[: MOST[images.ndim - 2]].cpu().contiguous()
        pixels = normal.numpy()
        kinds = ["lesion", *ANOMALIES] if min(normal.shape[2:]) >= 8 else ["lesion"]
        odd = [_planted(pixels[i], pixels[i - 1], kinds[i % len(kinds)], rng) for i in range(len(pixels))]
        noise = torch.randn(normal.shape, generator=torch.Generator().manual_seed(seed))
        return cls(normal, torch.from_numpy(np.stack(odd)), noise)

    def coded(self, code: Callable[[Float[Tensor, "n c *s"]], Float[Tensor, "n d *t"]], seed: int) -> "Trial":
        """The same trial for a model of codes.

        Args:
            code: codes of images in [-1, 1].
        """
        normal, odd = ((code(2 * images - 1) + 1) / 2 for images in (self.normal, self.odd))
        return Trial(normal, odd, torch.randn(normal.shape, generator=torch.Generator().manual_seed(seed)))

    def area(self, denoiser: Denoiser, device: torch.device) -> float:
        """AUROC of the denoising error, ties by half."""
        with torch.no_grad():
            own, other = (self._errors(denoiser, images, device) for images in (self.normal, self.odd))
        return area_of(own, other)

    def area_of(self, score: Callable[[Float[Tensor, "m c *s"]], Float[Tensor, " m"]], device: torch.device) -> float:
        """AUROC of a score of images in [-1, 1], higher = odder; ties by half."""
        with torch.no_grad():
            own, other = (
                torch.cat([score((2 * part - 1).to(device)).cpu() for part in images.split(CHUNK[images.ndim - 2])])
                for images in (self.normal, self.odd)
            )
        return area_of(own.double(), other.double())

    def _errors(self, denoiser: Denoiser, images: Tensor, device: torch.device) -> Float[Tensor, " n"]:
        """Mean over levels of ``|D(x + sigma n, sigma) - x|^2 / sigma^2``."""
        parts = []
        for clean, noise in zip(*((part.split(CHUNK[images.ndim - 2])) for part in (2 * images - 1, self.noise)), strict=True):
            x, n = clean.to(device), noise.to(device)
            errors = [(denoiser(x + s * n, x.new_full((len(x),), s)).float() - x).square().flatten(1).mean(dim=1) / s**2 for s in LEVELS]
            parts.append(torch.stack(errors).mean(dim=0).cpu())
        return torch.cat(parts).double()


def area_of(own: Float[Tensor, " n"], other: Float[Tensor, " m"]) -> float:
    """AUROC: the chance that one of the others is larger than one of the own, ties by half."""
    line = own.sort().values
    below, upto = (torch.searchsorted(line, other.to(line), right=right) for right in (False, True))
    return float((below + upto).double().mean()) / (2 * len(own))


def _planted(pixels: np.ndarray, other: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    if kind == "lesion":
        return plant_lesion(pixels, rng=rng, ranges=LESIONS).pixels
    return ANOMALIES[kind](pixels, other, rng=rng).pixels
