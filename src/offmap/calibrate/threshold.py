"""Thresholds by false-alarm rate: what a calibration set of n images can promise.

Given the calibration set, the false-alarm rate of split-conformal p-values is Beta-distributed: Vovk, ACML 2012,
arXiv:1209.2673, proposition 2a; the observed share in m images is Beta-binomial.
"""

import math

from offmap.core.errors import ConfigError

_ROUNDING = 1e-9


def rank(n: int, alpha: float) -> int:
    """``k = floor(alpha (n + 1))``: an image is flagged when it scores above the k-th largest calibration score; 0 = never."""
    _check(n, alpha)
    return math.floor(alpha * (n + 1) * (1 + _ROUNDING))


def needed(alpha: float) -> int:
    """Smallest number of calibration images with which ``p <= alpha`` can happen: ``ceil(1 / alpha) - 1``."""
    _check(0, alpha)
    return math.ceil(1 / alpha * (1 - _ROUNDING)) - 1


def beta_interval(n: int, alpha: float, level: float = 0.9) -> tuple[float, float]:
    """Central interval of the long-run false-alarm rate, given one calibration set of n images: Beta(k, n + 1 - k).

    For exchangeable in-distribution images and a split; (0, 0) where n is too small to flag anything.

    Raises:
        ConfigError: n < 0, or alpha or level outside (0, 1).
    """
    k = rank(n, alpha)
    _check(n, level)
    if k == 0:
        return 0.0, 0.0
    from scipy.stats import beta

    low, high = ((1 - level) / 2, (1 + level) / 2)
    return float(beta.ppf(low, k, n + 1 - k)), float(beta.ppf(high, k, n + 1 - k))


def beta_binomial_band(n: int, m: int, alpha: float, level: float = 0.99) -> tuple[int, int]:
    """Central band of the number of false alarms among m new in-distribution images, ends included: BetaBinomial(m; k, n + 1 - k).

    This, not ``beta_interval``, is what an observed count is compared with.

    Raises:
        ConfigError: n < 0, m < 0, or alpha or level outside (0, 1).
    """
    k = rank(n, alpha)
    _check(m, level)
    if k == 0 or m == 0:
        return 0, 0
    from scipy.stats import betabinom

    low, high = ((1 - level) / 2, (1 + level) / 2)
    return int(betabinom.ppf(low, m, k, n + 1 - k)), int(betabinom.ppf(high, m, k, n + 1 - k))


def _check(n: int, share: float) -> None:
    if n < 0 or not 0 < share < 1:
        raise ConfigError(f"{n} images at {share}: the number must be >= 0 and the rate or level must lie in (0, 1)")
