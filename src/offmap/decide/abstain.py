"""Abstention with a guarantee: the largest coverage whose selective risk stays below a bound, with a stated probability.

Learn-then-Test (Angelopoulos, Bates, Candes, Jordan & Lei, Annals of Applied Statistics 19, 2025, arXiv:2110.01052).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Shaped

from offmap.core.component import Component
from offmap.core.errors import ConfigError
from offmap.decide.risk_coverage import checked

Values = Shaped[np.ndarray, " _"]
TESTING = ("fixed_sequence", "bonferroni")


@dataclass(frozen=True)
class Abstention:
    """A threshold of confidence, and what holds for the images above it.

    Args:
        threshold: an image is accepted when its confidence is above it; ``-inf`` accepts every assessed image. None = no threshold
            could be shown to keep the bound, and every image has to be reviewed.
        coverage: share of the calibration images that is accepted.
        risk: share of those that fails (as seen; the guarantee is the bound, not this number).
        n: calibration images.
        tested: calibration images that served the test itself.
    """

    threshold: float | None
    coverage: float
    risk: float
    n: int
    tested: int

    def accepts(self, confidence: Values) -> Shaped[np.ndarray, " _"]:
        """Which images are accepted."""
        return np.asarray(confidence) > (math.inf if self.threshold is None else self.threshold)


@dataclass(frozen=True)
class LearnThenTest(Component):
    """Keeps the selective risk, the share of failures among accepted images, at or below ``risk`` with the given probability.

    Over all calibration sets that could have been drawn, the threshold breaks the bound in at most ``1 - probability`` of them; for
    images drawn like the calibration images, each independently of the others. Nothing is promised for images drawn otherwise.

    ``fixed_sequence``: a random ``share`` of the calibration images proposes thresholds and where to begin; the others test them one
    after another, each at the full level, towards more coverage, up to the first that cannot be shown to keep the bound.
    ``bonferroni``: all images test ``levels`` coverages, fixed in advance, each at ``(1 - probability) / levels``.

    Args:
        risk: bound of the selective risk, in (0, 1).
        probability: of the guarantee, in (0, 1).
        testing: ``fixed_sequence`` or ``bonferroni``.
        share: of the calibration images that propose thresholds, in (0, 1); not used by ``bonferroni``.
        levels: number of thresholds, 1 or more.
    """

    reference: ClassVar[str] = "Angelopoulos, Bates, Candes, Jordan & Lei, Annals of Applied Statistics 19, 2025, arXiv:2110.01052"
    risk: float = 0.05
    probability: float = 0.95
    testing: str = "fixed_sequence"
    share: float = 0.25
    levels: int = 40

    def __post_init__(self) -> None:
        if not (0 < self.risk < 1 and 0 < self.probability < 1 and 0 < self.share < 1 and self.levels >= 1):
            raise ConfigError(
                f"risk = {self.risk}, probability = {self.probability} and share = {self.share} must lie in (0, 1), "
                f"and levels = {self.levels} be 1 or more"
            )
        if self.testing not in TESTING:
            raise ConfigError(f"testing = {self.testing!r} must be one of {', '.join(TESTING)}")

    @property
    def needed(self) -> int:
        """Accepted images below which not even a set without a failure can show the bound: ``ln(1 - probability) / ln(1 - risk)``."""
        level = (1 - self.probability) / (self.levels if self.testing == "bonferroni" else 1)
        return math.ceil(math.log(level) / math.log1p(-self.risk))

    def choose(self, confidence: Values, loss: Values, *, generator: np.random.Generator) -> Abstention:
        """The threshold.

        Args:
            confidence, loss: of calibration images that played no part in fitting, as ``RiskCoverage.of``; losses in [0, 1].
            generator: divides the calibration images; ``bonferroni`` does not use it.

        Raises:
            ConfigError: as ``RiskCoverage.of``.
        """
        surer, losses = checked(confidence, loss)
        n = len(surer)
        if self.testing == "bonferroni":
            found, tested = self._bonferroni(surer, losses), n
        else:
            order = generator.permutation(n)
            cut = max(1, round(self.share * n))
            found, tested = self._sequence(surer[order], losses[order], cut), n - cut
        kept = surer > (math.inf if found is None else found)
        return Abstention(found, float(kept.mean()), float(losses[kept].mean()) if kept.any() else float("nan"), n, tested)

    def _bonferroni(self, surer: Float[np.ndarray, " n"], losses: Float[np.ndarray, " n"]) -> float | None:
        """Given the threshold, the images above an order statistic are a sample of those above it, so each p-value is valid."""
        level = (1 - self.probability) / self.levels
        for threshold in sorted(set(_ladder(surer, self.levels))):
            if self._p_value(surer, losses, threshold) <= level:
                return threshold
        return None

    def _sequence(self, surer: Float[np.ndarray, " n"], losses: Float[np.ndarray, " n"], cut: int) -> float | None:
        thresholds = sorted(set(_ladder(surer[:cut], self.levels)), reverse=True)
        start = self._start(surer[:cut], losses[:cut], thresholds, len(surer) - cut)
        found = None
        for threshold in thresholds[start:]:
            if self._p_value(surer[cut:], losses[cut:], threshold) > 1 - self.probability:
                break
            found = threshold
        return found

    def _start(self, surer: Float[np.ndarray, " n"], losses: Float[np.ndarray, " n"], thresholds: list[float], others: int) -> int:
        """Where the images that do not test foresee the smallest p-value."""
        foreseen = []
        for threshold in thresholds:
            kept = surer > threshold
            rate = (losses[kept].sum() + 0.5) / (kept.sum() + 1)
            foreseen.append(p_value(float(rate), round(others * float(kept.mean())), self.risk))
        return int(np.argmin(foreseen))

    def _p_value(self, surer: Float[np.ndarray, " n"], losses: Float[np.ndarray, " n"], threshold: float) -> float:
        kept = losses[surer > threshold]
        return p_value(float(kept.mean()), len(kept), self.risk, binary=bool(np.isin(losses, (0, 1)).all())) if len(kept) else 1.0


def p_value(mean: float, n: int, risk: float, *, binary: bool = False) -> float:
    """Of the hypothesis that the mean loss exceeds ``risk``, from n independent losses in [0, 1] with this mean.

    Losses of 0 and 1: exact, ``P(Bin(n, risk) <= failures)``. Otherwise that of Hoeffding and Bentkus,
    ``min(exp(-n KL(mean, risk)), e P(Bin(n, risk) <= ceil(n mean)))`` for ``mean < risk``.

    Source: Bates, Angelopoulos, Lei, Malik & Jordan, Journal of the ACM 68, 2021, arXiv:2101.02703.
    """
    from scipy.special import rel_entr
    from scipy.stats import binom

    if n == 0:
        return 1.0
    if binary:
        return float(binom.cdf(round(n * mean), n, risk))
    below = min(mean, risk)
    hoeffding = math.exp(-n * float(rel_entr(below, risk) + rel_entr(1 - below, 1 - risk)))
    return min(1.0, hoeffding, math.e * float(binom.cdf(math.ceil(n * mean - 1e-9), n, risk)))


def _ladder(surer: Float[np.ndarray, " n"], levels: int) -> list[float]:
    """Confidences above which about 1, 2 ... of ``levels`` equal parts of the images lie; ``-inf`` for all."""
    falling = np.append(np.sort(surer)[::-1], -np.inf)
    return [float(falling[round(len(surer) * step / levels)]) for step in range(1, levels + 1)]
