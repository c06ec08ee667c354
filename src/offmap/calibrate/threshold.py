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


def reachable(n: int, *, alpha: float = 0.05, reject: float | None = None) -> tuple[str, ...]:
    """Bands that n calibration images can tell apart: ``accept``, and those of ``review`` and ``reject`` that n is enough for.

    Args:
        n: calibration images.
        alpha: p-value at and below which an image goes to review.
        reject: p-value at and below which it is rejected; alpha / 10 if not given.
    """
    return ("accept", *(band for band, rate in _bands(alpha, reject) if n >= needed(rate)))


def words(n: int, *, alpha: float = 0.05, reject: float | None = None, cross: bool = False) -> tuple[str, ...]:
    """What n calibration images promise, in sentences for the gate's card.

    Args:
        n, alpha, reject: as in ``reachable``.
        cross: the images were calibrated on in folds.
    """
    lines = [f"{n} calibration images: surprise is resolved up to {math.log2(n + 1):.2f} bits."]
    for band, rate in _bands(alpha, reject):
        if n < needed(rate):
            lines.append(f"{band} (p <= {rate:g}) cannot be reached: it needs {needed(rate)} calibration images, there are {n}.")
            continue
        line = f"{band} at p <= {rate:g} ({-math.log2(rate):.2f} bits)"
        if cross:
            lines.append(f"{line}: about {rate:.2%} of in-distribution images, in the worst case twice that (cross-conformal).")
        else:
            low, high = beta_interval(n, rate)
            lines.append(
                f"{line}: false-alarm rate of this gate {low:.2%} to {high:.2%} with 90 % probability, {rate:.2%} or less on average."
            )
    return tuple(lines)


def _bands(alpha: float, reject: float | None) -> tuple[tuple[str, float], ...]:
    return ("review", alpha), ("reject", alpha / 10 if reject is None else reject)
