"""Abstention that keeps undetected failures rare on average: conformal risk control (Angelopoulos et al., ICLR 2024, arXiv:2208.02814)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Shaped

from offmap.core.component import Component
from offmap.core.errors import ConfigError
from offmap.decide.abstain import Abstention
from offmap.decide.risk_coverage import RiskCoverage, checked

_ROUNDING = 1e-9


@dataclass(frozen=True)
class ConformalRiskControl(Component):
    """Keeps the chance that an image is accepted *and* fails at or below ``undetected``, in expectation.

    The mean is over calibration sets and new images exchangeable with them: no probability is attached to the one calibration set at
    hand, and the share of failures among *accepted* images may be larger. For that, with a probability, see ``LearnThenTest``.

    Args:
        undetected: bound of the share of all images that are accepted and fail, in (0, 1).
    """

    reference: ClassVar[str] = "Angelopoulos, Bates, Fisch, Lei & Schuster, ICLR 2024, arXiv:2208.02814, theorem 1"
    undetected: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.undetected < 1:
            raise ConfigError(f"undetected = {self.undetected} must lie in (0, 1)")

    @property
    def needed(self) -> int:
        """Calibration images below which nothing can be accepted: ``ceil(1 / undetected) - 1``."""
        return math.ceil(1 / self.undetected - _ROUNDING) - 1

    def choose(self, confidence: Shaped[np.ndarray, " _"], loss: Shaped[np.ndarray, " _"]) -> Abstention:
        """The smallest threshold at which ``(sum of accepted losses + 1) / (n + 1)`` is at most ``undetected``.

        Args:
            confidence, loss: of calibration images that played no part in fitting, as ``RiskCoverage.of``; losses in [0, 1].

        Raises:
            ConfigError: as ``RiskCoverage.of``.
        """
        surer, losses = checked(confidence, loss)
        n, allowed = len(surer), self.undetected * (len(surer) + 1) - 1 + _ROUNDING
        if allowed < 0:
            return Abstention(None, 0.0, float("nan"), n, n)
        curve = RiskCoverage.of(surer, losses)
        broken = np.flatnonzero(curve.failed > allowed)
        threshold = float(curve.thresholds[broken[0]]) if len(broken) else -math.inf
        kept = surer > threshold
        return Abstention(threshold, float(kept.mean()), float(losses[kept].mean()) if kept.any() else float("nan"), n, n)
