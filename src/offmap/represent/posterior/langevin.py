"""Annealed Langevin steps with a data term, as of patch-based priors."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.represent.denoiser import Denoiser
from offmap.represent.operators.contract import Operator
from offmap.represent.posterior.contract import Draws, Level, Sampler, Step, karras
from offmap.represent.posterior.guidance import guided


@dataclass(frozen=True, kw_only=True)
class Langevin(Sampler):
    """``inner`` Langevin steps at each level: ``x + a/2 (score + s_l) + sqrt(a) z``, ``a = rate sigma^2``; no noise at the last level.

    PaDIS takes these steps with a prior of patches (``posterior.patches``). With ``matched`` guidance the pull ``a/2 s_l`` is given as
    the update that a reverse step over the whole level would have made, ``(sigma^2 - below^2) s_l``, and squares are averaged over the
    inner steps, so that sums are the integral (derived here). With ``dps`` updates are the raw ``strength J^T A^T r / |r|``. The
    authors' code sums inner updates, and averages runs before squaring, which loses what differs between them.

    Finite steps leave ``1 / (1 - rate / 4)`` times the variance at a level, 14 % too much at 1/2, and few of them lag behind it, so that
    sums are some per cent too large; ``edm`` is nearer.

    Args:
        steps, samples, sigma_max, sigma_min, start, guidance, backward, strength, deviation: as of ``Sampler``.
        inner: steps at each level.
        rate: size of a step, in squares of the noise level, in (0, 1].
        rho: as of ``edm``.
    """

    sigma_max: float = 10.0
    sigma_min: float = 0.003
    inner: int = 10
    rate: float = 0.5
    rho: float = 7.0

    reference: ClassVar[str] = "Hu et al., PaDIS, NeurIPS 2024, arXiv 2406.02462; settings of KLIP, CVPR 2026"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner < 1 or not 0 < self.rate <= 1 or not self.rho >= 1:
            raise ConfigError(
                f"langevin: inner = {self.inner} must be at least 1, rate = {self.rate} in (0, 1], rho = {self.rho} at least 1"
            )

    def sigmas(self) -> list[float]:
        return karras(self.steps, self.sigma_max, self.sigma_min, self.rho)

    def clock(self, level: Level) -> tuple[float, float]:
        return (level.sigma + level.below) ** 0.5, level.sigma - level.below

    def step(
        self, denoiser: Denoiser, x: Float[Tensor, "m c h w"], level: Level, y: Float[Tensor, "m c *k"], operator: Operator, draws: Draws
    ) -> Step:
        updates, evaluations, size = [], 0, self.rate * level.sigma**2
        matched = self.guidance == "matched"
        for _ in range(self.inner):
            found = guided(self, denoiser, x, level.sigma, y, operator)
            x = x + 0.5 * self.rate * (found.denoised - x) + (0.5 * size if matched else self.strength) * found.pull
            if level.below > 0:
                x = x + size**0.5 * draws.normal()
            updates.append((level.length if matched else self.strength) * found.pull)
            evaluations += found.evaluations
        return Step(x, tuple(updates), evaluations)
