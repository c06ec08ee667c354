"""How much wider than usual the posterior of a diffusion model is: leading eigenvalues of its covariance."""

from dataclasses import dataclass
from typing import ClassVar

from offmap.core.errors import ConfigError
from offmap.core.signals import named
from offmap.score._noise_levels import LevelsDetector


@dataclass(frozen=True, kw_only=True)
class EigenScore(LevelsDetector):
    """Mean over levels of ``(e - mean) / deviation``, e the sum of the leading eigenvalues of ``Cov[clean | noisy] = sigma^2 dD/dx``.

    The covariance is Tweedie's, its eigenvalues those of a block power iteration from one random start, with exact derivatives. The
    number is in deviations of in-distribution images: where the model is unsure of the clean image, it is high.

    Needs a diffusion model of the in-distribution images. Scoring takes ``levels * vectors * iterations * repeats`` passes with a
    directional derivative (27 with the defaults, each about two to three passes); the paper's settings cost hundreds to thousands.
    Fitting costs the same for each held-out image (for all, where fewer than 30 are held out); the state is two numbers a level.

    Fails where an odd image is simple, so that nothing about it is uncertain: it scores low. The authors choose levels with
    out-of-distribution images at hand; the defaults here were not.

    Args:
        levels: number of levels.
        low: lowest level, deviation of the noise in units of pixels in [-1, 1].
        high: highest level; those between lie in equal ratios.
        vectors: leading eigenvalues that are summed.
        iterations: of the power method; few give less than the true eigenvalues, alike for all images.
        repeats: noises whose eigenvalues are averaged.
    """

    levels: int = 3
    low: float = 0.3
    high: float = 1.25
    vectors: int = 3
    iterations: int = 3
    repeats: int = 1

    passes: ClassVar[str] = "27F+27J"
    reference: ClassVar[str] = "EigenScore, 2025, arXiv 2510.07206"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, most in (("vectors", 64), ("iterations", 1000), ("repeats", 100)):
            if not 1 <= getattr(self, name) <= most:
                raise ConfigError(f"eigenscore: {name} = {getattr(self, name)} must lie between 1 and {most}")

    @property
    def signal(self) -> str:
        settings = {"vectors": self.vectors, "iterations": self.iterations, "repeats": self.repeats}
        return named("eigenscore.values", {"levels": self.levels, "low": self.low, "high": self.high, **settings})
