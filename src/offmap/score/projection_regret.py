"""How much further an image moves when it is projected onto what a diffusion model knows than its projection does."""

from dataclasses import dataclass
from typing import ClassVar

from offmap.core.errors import ConfigError
from offmap.core.signals import named
from offmap.score._noise_levels import LevelsDetector


@dataclass(frozen=True, kw_only=True)
class ProjectionRegret(LevelsDetector):
    """Mean over levels of ``(m - mean) / deviation``, m the regret ``d(x, P(x)) - d(P(x), P(P(x)))`` with a projection P.

    What P changes in any image, such as fine texture, it changes in its own output too: the second term takes that off. Mean and
    deviation are those of in-distribution images, so the number is in deviations: 0 is usual, higher is more OOD.

    Here ``P(x) = D(x + sigma n, sigma)``, one step of the denoiser, and d is the mean squared difference. The paper projects with a
    consistency model and measures with LPIPS; one step of a denoiser is blurred where that is sharp, so this is the project's own
    approximation, and the paper's numbers do not carry over.

    Needs a diffusion model of the in-distribution images. Scoring takes ``2 * levels * repeats`` passes forward (12F with the defaults);
    fitting the same for each held-out image (for all, where fewer than 30 are held out); the state is two numbers a level.

    Fails where the difference to usual images is small against the noise of the level: P leaves it out, and takes it for noise of its own.

    Args:
        levels: levels of noise that are projected from.
        low: lowest level, deviation of the noise in units of pixels in [-1, 1].
        high: highest level; those between lie in equal ratios.
        repeats: noises whose regrets are averaged.
    """

    levels: int = 3
    low: float = 0.2
    high: float = 2.0
    repeats: int = 2

    passes: ClassVar[str] = "12F"
    reference: ClassVar[str] = (
        "Choi et al., Projection Regret: Reducing Background Bias for Novelty Detection via Diffusion Models, NeurIPS 2023, "
        "arXiv 2312.02615"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.repeats <= 100:
            raise ConfigError(f"projection_regret: repeats = {self.repeats} must lie between 1 and 100")

    @property
    def signal(self) -> str:
        return named("projection.regrets", {"levels": self.levels, "low": self.low, "high": self.high, "repeats": self.repeats})
