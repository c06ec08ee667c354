"""Predictor and corrector with projections onto the measurement."""

import math
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.represent.denoiser import Denoiser
from offmap.represent.operators.contract import Operator
from offmap.represent.posterior.contract import Draws, Level, Sampler, Step, geometric
from offmap.represent.posterior.guidance import ancestral


@dataclass(frozen=True, kw_only=True)
class PredictorCorrector(Sampler):
    """A Langevin step and a projection, then an ancestral step and a projection, at each of the noise levels.

    A projection brings the measurement to the level, ``y_t = y + sigma A z``, and x towards it:
    ``x + share sigma^2 A^T (sigma^2 A A^T + noise^2)^-1 (y_t - A x)``, a regularised pseudo-inverse of the difference. Updates are those of
    the Langevin step's projection, ``g = sigma sqrt(2 ln(sigma_max / sigma_min))``, as in the authors' code, up to the first order of a
    step; ``dt = 1 / steps``, with g such that ``g^2 dt`` is exact.

    The noise of y_t and of x adds a floor to every update, the same for all images in expectation; z is the same for the samples of an
    image and fresh in every step. Sums are units of this sampler, not nats; ``guidance``, ``backward``, ``strength`` and
    ``deviation`` have no effect.

    Args:
        steps, samples, sigma_max, sigma_min, start, guidance, backward, strength, deviation: as of ``Sampler``.
        snr: size of the Langevin step: ``2 (snr |z| / |score|)^2``.
        share: of the way to the measurement, in (0, 1].
    """

    snr: float = 0.246
    share: float = 0.841

    reference: ClassVar[str] = (
        "Song et al., Solving Inverse Problems in Medical Imaging with Score-Based Generative Models, ICLR 2022, arXiv 2111.08005; "
        "settings of KLIP, CVPR 2026"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.snr > 0 or not 0 < self.share <= 1:
            raise ConfigError(f"predictor_corrector: snr = {self.snr} must be above 0, share = {self.share} in (0, 1]")

    @property
    def nats(self) -> bool:
        return False

    def sigmas(self) -> list[float]:
        return geometric(self.steps, self.sigma_max, self.sigma_min)

    def clock(self, level: Level) -> tuple[float, float]:
        return math.sqrt(level.length * self.steps), 1 / self.steps

    def step(
        self, denoiser: Denoiser, x: Float[Tensor, "m c h w"], level: Level, y: Float[Tensor, "m c *k"], operator: Operator, draws: Draws
    ) -> Step:
        sigma = x.new_full((len(x),), level.sigma)
        score = (denoiser(x, sigma) - x) / level.sigma**2
        noise = draws.normal()
        lengths = (noise.flatten(1).norm(dim=1) / score.flatten(1).norm(dim=1).clamp_min(1e-12)).view(-1, 1, 1, 1)
        size = (2 * (self.snr * lengths).square()).clamp_max(level.sigma**2)
        x = x + size * score + (2 * size).sqrt() * noise
        update = self._projection(x, level.sigma, y, operator, draws)
        x = x + update
        x = ancestral(x, denoiser(x, sigma), level, draws)
        return Step(x + self._projection(x, level.below, y, operator, draws), (update,), 2)

    def _projection(
        self, x: Float[Tensor, "m c h w"], sigma: float, y: Float[Tensor, "m c *k"], operator: Operator, draws: Draws
    ) -> Float[Tensor, "m c h w"]:
        spread = max(sigma, self.sigma_min)
        noised = y + sigma * operator.forward(draws.shared())
        variance = x.new_full((len(x),), spread**2)
        size = (int(x.shape[2]), int(x.shape[3]))
        return self.share * spread**2 * operator.pull(noised - operator.forward(x), variance, size)
