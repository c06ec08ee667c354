"""How much worse than usual a diffusion model restores the image from noise of many levels."""

from dataclasses import dataclass
from typing import ClassVar

from offmap.core.errors import ConfigError
from offmap.core.signals import named
from offmap.score._noise_levels import LevelsDetector


@dataclass(frozen=True, kw_only=True)
class DDPMOOD(LevelsDetector):
    """Mean over starting levels of ``(m - mean) / deviation``, m the mean squared difference of the image and its reconstruction.

    From each start the image with noise is brought back to a clean one along all lower levels, without randomness. Mean and deviation
    are those of in-distribution images, so the number is in deviations: 0 is usual, higher is more OOD.

    Needs a diffusion model of the in-distribution images. Scoring takes the sum of the starts' steps, 30F with the defaults (2, 4, 6, 8
    and 10 steps); fitting the same for each held-out image (for all, where fewer than 30 are held out); the state is two numbers a start.
    The paper takes 100 steps and 350F or more, and adds a perceptual distance by a network for natural images, which is left out.

    Fails for odd images that are simple: what is smooth is restored well from any noise, and errors of all levels are small. Statistics
    of images that the model was trained on are too small; keep images out.

    Args:
        levels: steps of the longest path.
        low: lowest level, deviation of the noise in units of pixels in [-1, 1].
        high: highest level; those between lie in equal ratios.
        every: distance of two starts, in levels.
    """

    every: int = 2

    passes: ClassVar[str] = "30F"
    reference: ClassVar[str] = "Graham et al., Denoising Diffusion Models for Out-of-Distribution Detection, CVPR-W 2023, arXiv 2211.07740"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.every <= self.levels:
            raise ConfigError(f"ddpm_ood: every = {self.every} must lie between 1 and levels = {self.levels}")

    @property
    def signal(self) -> str:
        return named("multi_noise.errors", {"levels": self.levels, "every": self.every, "low": self.low, "high": self.high})
