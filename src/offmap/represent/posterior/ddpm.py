"""Diffusion posterior sampling on the noise levels of DDPM."""

import math
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.represent.denoiser import Denoiser
from offmap.represent.operators.contract import Operator
from offmap.represent.posterior.contract import Draws, Level, Sampler, Step
from offmap.represent.posterior.guidance import ancestral, guided

TRAINED = 1000
"""Time steps of the forward process."""


@dataclass(frozen=True, kw_only=True)
class DDPM(Sampler):
    """Reverse steps of a variance-preserving process with linear beta, 1000 times of which ``steps`` are taken.

    With ``abar = 1 / (1 + sigma^2)``, x in variance-exploding form is ``z / sqrt(abar)``, a step of ``dz = beta s_l(z)`` is
    ``dx = dz / sqrt(abar)`` there, and ``beta = 1 - abar / abar_below`` of the steps that are taken, not of a single one of the 1000.
    Updates are dz, ``g = sqrt(beta)``, ``dt = 1``, so that squared updates over ``g^2 dt`` are the same as in variance-exploding form
    (derived here). ``dps``: ``dz = strength A^T r / (|r| sqrt(abar))``, with noise of one in the likelihood as in the authors' code.
    Noise is fresh in every step; theirs adds the same noise in each.

    Args:
        steps, samples, start, guidance, backward, strength, deviation: as of ``Sampler``.
        sigma_max, sigma_min: levels outside are left out; the process has them from 0.01 to 157.
        beta_min, beta_max: of a single time step, first and last.
    """

    sigma_max: float = 160.0
    beta_min: float = 1e-4
    beta_max: float = 0.02

    reference: ClassVar[str] = "Ho et al., NeurIPS 2020, arXiv 2006.11239; Kheirandish, Hong & Fridovich-Keil, KLIP, CVPR 2026"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta_min < self.beta_max < 1:
            raise ConfigError(f"ddpm: 0 < beta_min < beta_max < 1 is needed, found {self.beta_min} and {self.beta_max}")
        if len(self._trained()) < self.steps:
            raise ConfigError(
                f"ddpm: {len(self._trained())} of its {TRAINED} levels lie between sigma_min = {self.sigma_min} and "
                f"sigma_max = {self.sigma_max}; steps = {self.steps} are too many"
            )

    def _trained(self) -> list[float]:
        """Noise levels of the forward process between the two ends, in falling order."""
        kept, out = 1.0, []
        for t in range(TRAINED):
            kept *= 1 - (self.beta_min + (self.beta_max - self.beta_min) * t / (TRAINED - 1))
            out.append(math.sqrt((1 - kept) / kept))
        return [s for s in reversed(out) if self.sigma_min <= s <= self.sigma_max]

    def sigmas(self) -> list[float]:
        known = self._trained()
        return [known[round(i * (len(known) - 1) / (self.steps - 1))] for i in range(self.steps)] + [0.0]

    def clock(self, level: Level) -> tuple[float, float]:
        return math.sqrt(level.length / (1 + level.sigma**2)), 1.0

    def step(
        self, denoiser: Denoiser, x: Float[Tensor, "m c h w"], level: Level, y: Float[Tensor, "m c *k"], operator: Operator, draws: Draws
    ) -> Step:
        found, scale = guided(self, denoiser, x, level.sigma, y, operator), math.sqrt(1 + level.sigma**2)
        update = found.pull * (level.length / scale if self.guidance == "matched" else self.strength * scale)
        return Step(ancestral(x, found.denoised, level, draws) + scale * update, (update,), found.evaluations)
