"""Diffusion posterior sampling on EDM's noise levels."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.represent.denoiser import Denoiser
from offmap.represent.operators.contract import Operator
from offmap.represent.posterior.contract import Draws, Level, Sampler, Step, karras
from offmap.represent.posterior.guidance import ancestral, guided


@dataclass(frozen=True, kw_only=True)
class EDM(Sampler):
    """Ancestral steps in variance-exploding form. ``dx = (sigma^2 - below^2) s_l`` (matched), or ``strength J^T A^T r / |r|`` (dps).

    Time is sigma: ``dt = sigma - below`` and ``g^2 = sigma + below``, so that ``g^2 dt`` is exact.

    Args:
        steps, samples, sigma_max, sigma_min, start, guidance, backward, strength, deviation: as of ``Sampler``.
        rho: how much denser the levels are at low noise; at least 1.
    """

    rho: float = 7.0

    reference: ClassVar[str] = "Karras et al., NeurIPS 2022, arXiv 2206.00364; Chung et al., DPS, ICLR 2023, arXiv 2209.14687"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rho >= 1:
            raise ConfigError(f"edm: rho = {self.rho} must be at least 1")

    def sigmas(self) -> list[float]:
        return karras(self.steps, self.sigma_max, self.sigma_min, self.rho)

    def clock(self, level: Level) -> tuple[float, float]:
        return (level.sigma + level.below) ** 0.5, level.sigma - level.below

    def step(
        self, denoiser: Denoiser, x: Float[Tensor, "m c h w"], level: Level, y: Float[Tensor, "m c *k"], operator: Operator, draws: Draws
    ) -> Step:
        found = guided(self, denoiser, x, level.sigma, y, operator)
        update = (level.length if self.guidance == "matched" else self.strength) * found.pull
        return Step(ancestral(x, found.denoised, level, draws) + update, (update,), found.evaluations)
