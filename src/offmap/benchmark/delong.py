"""Intervals and paired tests of AUROC without resampling (DeLong, DeLong & Clarke-Pearson, Biometrics 44, 1988).

The placements are found by midranks (Sun & Xu, IEEE Signal Processing Letters 21, 2014), so that time grows as n log n.
Higher score = more OOD; OOD is the positive class.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

from offmap.core.errors import ConfigError

Scores = Shaped[np.ndarray, " _"]


@dataclass(frozen=True)
class Difference:
    """AUROC of one method minus that of another on the same images.

    Args:
        value: in [-1, 1].
        low, high: interval.
        p_value: two-sided; 1 where both methods rank alike.
    """

    value: float
    low: float
    high: float
    p_value: float


def auroc_interval(own: Scores, other: Scores, *, level: float = 0.95) -> tuple[float, float]:
    """Interval of the AUROC, on the logit scale, so that it stays within [0, 1]; at an AUROC of 0 or 1 the estimator's variance is zero.

    There the end that is not known from the variance is that of an exact binomial test of ``min(n, m)`` images without
    a failure, ``(1 - level)/2 ** (1/n)``: a few images never prove a perfect detector.

    Args:
        own, other: scores of in-distribution and other images, two or more each.

    Raises:
        ConfigError: fewer than two scores on one side.
    """
    place = _Placements.of(own, other)
    value, variance = place.auroc, place.variance
    if variance <= 0 or not 0 < value < 1:
        slack = 1 - ((1 - level) / 2) ** (1 / min(len(own), len(other)))
        return max(0.0, value - slack), min(1.0, value + slack)
    centre = np.log(value / (1 - value))
    half = _quantile(level) * np.sqrt(variance) / (value * (1 - value))
    return float(1 / (1 + np.exp(half - centre))), float(1 / (1 + np.exp(-half - centre)))


def auroc_difference(own: Scores, other: Scores, rival_own: Scores, rival_other: Scores, *, level: float = 0.95) -> Difference:
    """AUROC of a method minus that of a rival on the same images, in the same order.

    Raises:
        ConfigError: fewer than two scores on one side, or different numbers of images.
    """
    if len(own) != len(rival_own) or len(other) != len(rival_other):
        raise ConfigError(
            f"paired methods must score the same images: {len(own)} and {len(rival_own)} in-distribution, "
            f"{len(other)} and {len(rival_other)} other"
        )
    one, two = _Placements.of(own, other), _Placements.of(rival_own, rival_other)
    value = one.auroc - two.auroc
    variance = (one.of_other - two.of_other).var(ddof=1) / len(other) + (one.of_own - two.of_own).var(ddof=1) / len(own)
    if variance <= 0:
        return Difference(value, value, value, 1.0 if value == 0 else 0.0)
    from scipy.stats import norm

    half = _quantile(level) * float(np.sqrt(variance))
    return Difference(value, value - half, value + half, float(2 * norm.sf(abs(value) / np.sqrt(variance))))


@dataclass(frozen=True, eq=False)
class _Placements:
    """For each image the share of images of the other kind that it beats (OOD), or that beat it (in-distribution)."""

    of_own: Float[np.ndarray, " n"]
    of_other: Float[np.ndarray, " m"]

    @classmethod
    def of(cls, own: Scores, other: Scores) -> "_Placements":
        from scipy.stats import rankdata

        if min(len(own), len(other)) < 2:
            raise ConfigError(f"an interval of the AUROC needs two images or more of each kind; given {len(own)} and {len(other)}")
        own, other = own.astype(np.float64), other.astype(np.float64)
        joint = rankdata(np.concatenate([own, other]))
        beaten = (joint[len(own) :] - rankdata(other)) / len(own)
        beating = 1 - (joint[: len(own)] - rankdata(own)) / len(other)
        return cls(beating, beaten)

    @property
    def auroc(self) -> float:
        return float(self.of_other.mean())

    @property
    def variance(self) -> float:
        return float(self.of_other.var(ddof=1) / len(self.of_other) + self.of_own.var(ddof=1) / len(self.of_own))


def _quantile(level: float) -> float:
    from scipy.stats import norm

    return float(norm.ppf((1 + level) / 2))
