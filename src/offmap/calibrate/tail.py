"""Surprise beyond the resolution of the calibration set: a generalised Pareto tail, without guarantee.

Pickands, Annals of Statistics 3, 1975; estimator: Zhang and Stephens, Technometrics 51, 2009, doi:10.1198/tech.2009.08017;
goodness of fit: Choulakian and Stephens, Technometrics 43, 2001, by parametric bootstrap.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from offmap.core.component import Component
from offmap.core.errors import BundleError, ConfigError, SignalError
from offmap.core.robust import finite

MAX_BITS = 60.0
"""No extrapolated surprise is larger."""

FITS = ("good", "poor", "few", "ties")
"""How far the tail can be trusted: the law fits; it does not; too few images (exponential tail); too many equal scores."""

_TINY = 1e-9


@dataclass(frozen=True)
class FittedTail:
    """A generalised Pareto law of the excess over ``threshold``, joined to the conformal p-value at ``maximum``.

    Args:
        threshold: score u above which the law holds.
        maximum: largest calibration score.
        xi: shape, in [-0.5, 0.5]; 0 = exponential.
        beta: scale, > 0, in units of the score.
        n: calibration images.
        n_tail: of these above the threshold.
        fit_p: p-value of the goodness of fit, in (0, 1]; 0 where there was nothing to test.
        fit: one of ``FITS``.
    """

    threshold: float
    maximum: float
    xi: float
    beta: float
    n: int
    n_tail: int
    fit_p: float
    fit: str

    @property
    def cap(self) -> float:
        """Bits at the largest calibration score, where the tail begins: ``log2(n + 1)``."""
        return math.log2(self.n + 1)

    def bits_extrapolated(self, scores: Float[Tensor, " m"], *, at_cap: Bool[Tensor, " m"] | None = None) -> Float64[Tensor, " m"]:
        """``cap + log2(S(max - u) / S(s - u))`` with S the survival function of the law.

        Joined to the conformal p-value 1/(n+1) at the largest calibration score, so that it is continuous there, grows
        strictly beyond, and never says less than the cap.

        Args:
            scores: on the scale that the tail was fitted on.
            at_cap: images whose p-value is 1/(n+1); those above ``maximum`` if not given.

        Returns:
            Bits in [cap, 60]; NaN below the cap.

        Raises:
            SignalError: scores are not finite.
        """
        finite(scores, "scores")
        values = scores.detach().cpu().double()
        beyond = values > self.maximum if at_cap is None else at_cap.cpu()
        bits = self.cap + self._tail_bits(values) - self._tail_bits(torch.tensor(self.maximum, dtype=torch.float64))
        bits = torch.where(values > self.maximum, bits, self.cap).clamp(min=self.cap, max=max(self.cap, MAX_BITS))
        return torch.where(beyond, bits, torch.nan)

    def _tail_bits(self, scores: Float64[Tensor, "*m"]) -> Float64[Tensor, "*m"]:
        excess = (scores - self.threshold).clamp(min=0) / self.beta
        if abs(self.xi) < _TINY:
            return excess / math.log(2)
        inside = 1 + self.xi * excess
        bits = torch.log1p((self.xi * excess).clamp(min=-1)) / (self.xi * math.log(2))
        return torch.where(inside > 0, bits, torch.inf)

    def state(self) -> dict[str, Tensor]:
        """Tensors from which ``from_state`` builds the same."""
        numbers = [self.threshold, self.maximum, self.xi, self.beta, self.fit_p]
        return {
            "law": torch.tensor(numbers, dtype=torch.float64),
            "counts": torch.tensor([self.n, self.n_tail, FITS.index(self.fit)], dtype=torch.int64),
        }

    def words(self) -> str:
        """A sentence for the gate's card."""
        trust = {
            "good": "the law fits",
            "poor": "the law does not fit: use the order only",
            "few": "too few images for a fit, exponential tail assumed: use the order only",
            "ties": "too many equal scores for a fit: use the order only",
        }[self.fit]
        law = f"shape {self.xi:.2f}, {self.n_tail} of {self.n} images, {trust}"
        return f"Beyond {self.cap:.2f} bits a generalised Pareto tail extrapolates ({law}); it orders far images and guarantees nothing."


def from_state(state: Mapping[str, Tensor]) -> FittedTail:
    """What ``FittedTail.state`` gave.

    Raises:
        BundleError: tensors are missing or out of range.
    """
    try:
        threshold, maximum, xi, beta, fit_p = state["law"].tolist()
        n, n_tail, code = state["counts"].tolist()
        good = beta > 0 and abs(xi) <= 0.5 and threshold <= maximum and 0 <= fit_p <= 1 and 0 <= n_tail <= n and n >= 1
        if not good or code not in range(len(FITS)) or xi * (maximum - threshold) <= -beta:
            raise ValueError("numbers out of range")
        return FittedTail(threshold, maximum, xi, beta, n, n_tail, fit_p, FITS[code])
    except (KeyError, ValueError, TypeError) as error:
        raise BundleError(f"the gate's tail is damaged ({error}). Fit the gate anew") from error


@dataclass(frozen=True)
class Tail(Component):
    """Fits the tail of calibration scores; ranks images that lie beyond all of them.

    Args:
        quantile: share of the calibration scores below the threshold, in [0.5, 1).
        minimum: excesses that a fit needs; below it the tail is exponential and flagged. The threshold goes down to the
            median to reach it.
        limit: largest absolute shape, in (0, 0.5].
        replicates: bootstrap samples of the goodness-of-fit test.
        level: p-value of the goodness of fit below which the fit is called poor.
    """

    reference: ClassVar[str] = "Zhang and Stephens, Technometrics 51, 2009, doi:10.1198/tech.2009.08017"
    quantile: float = 0.9
    minimum: int = 10
    limit: float = 0.5
    replicates: int = 99
    level: float = 0.05

    def __post_init__(self) -> None:
        if not (0.5 <= self.quantile < 1 and 0 < self.limit <= 0.5 and 0 <= self.level < 1):
            given = f"quantile = {self.quantile}, limit = {self.limit}, level = {self.level}"
            raise ConfigError(f"tail: {given} must lie in [0.5, 1), (0, 0.5] and [0, 1)")
        if self.minimum < 4 or self.replicates < 19:
            raise ConfigError(f"tail: minimum = {self.minimum} must be >= 4 and replicates = {self.replicates} must be >= 19")

    def fit(self, scores: Float[Tensor, " n"], *, generator: torch.Generator | None = None) -> FittedTail:
        """Fit to calibration scores.

        Args:
            scores: ``Calibrated.pooled()``.
            generator: randomness of the bootstrap; a fresh one with seed 0 if not given.

        Raises:
            SignalError: no score, or not finite.
        """
        finite(scores, "calibration scores")
        values = np.sort(scores.detach().cpu().double().numpy())
        n = len(values)
        if n == 0:
            raise SignalError("there are no calibration scores to fit a tail to: give more in-distribution images")
        wanted = min(max(self.minimum, math.ceil((1 - self.quantile) * n - _TINY)), n // 2)
        threshold = float(values[n - wanted - 1])
        excess = values[values > threshold] - threshold
        xi, beta, fit = self._law(excess, wanted, float(values.std()))
        fit_p = 0.0
        if fit == "good":
            rng = generator if generator is not None else torch.Generator().manual_seed(0)
            fit_p = self._goodness(excess, xi, beta, rng)
            fit = "good" if fit_p >= self.level else "poor"
        return FittedTail(threshold, float(values[-1]), xi, beta, n, len(excess), fit_p, fit)

    def _law(self, excess: np.ndarray, wanted: int, spread: float) -> tuple[float, float, str]:
        if len(excess) == 0:
            return 0.0, spread if spread > 0 else 1.0, "few" if wanted < self.minimum else "ties"
        if wanted < self.minimum:
            return 0.0, float(excess.mean()), "few"
        if len(excess) < self.minimum or 2 * len(np.unique(excess)) < len(excess):
            return 0.0, float(excess.mean()), "ties"
        return *estimate(excess, self.limit), "good"

    def _goodness(self, excess: np.ndarray, xi: float, beta: float, generator: torch.Generator) -> float:
        """p-value of the Anderson-Darling statistic, parameters refitted in each replicate."""
        seen = _anderson_darling(excess, xi, beta)
        uniform = torch.rand((self.replicates, len(excess)), generator=generator, dtype=torch.float64).numpy()
        drawn = [beta * (-np.log1p(-u) if abs(xi) < _TINY else np.expm1(-xi * np.log1p(-u)) / xi) for u in uniform]
        larger = sum(_anderson_darling(sample, *estimate(sample, self.limit)) >= seen for sample in drawn)
        return (1 + larger) / (1 + self.replicates)


def estimate(excess: Float64[np.ndarray, " m"], limit: float = 0.5) -> tuple[float, float]:
    """Shape and scale of a generalised Pareto law, ``S(y) = (1 + xi y / beta)^(-1/xi)``.

    Zhang and Stephens 2009, equations 2 to 6 (profile likelihood of ``theta = -xi / beta`` averaged over a grid); where the
    shape leaves ``[-limit, limit]`` it is set to the bound and the scale is the maximum-likelihood one.

    Args:
        excess: over the threshold, > 0, two or more.
        limit: largest absolute shape.
    """
    values = np.sort(excess)
    points = 20 + math.isqrt(len(values))
    quartile = values[int(len(values) / 4 + 0.5) - 1]
    grid = 1 / values[-1] + (1 - np.sqrt(points / (np.arange(1, points + 1) - 0.5))) / (3 * quartile)
    grid = np.where(np.abs(grid * values[-1]) < _TINY, _TINY / values[-1], grid)
    shapes = np.log1p(-grid[:, None] * values).mean(axis=1)
    likelihood = len(values) * (np.log(-grid / shapes) - shapes - 1)
    weights = np.exp(likelihood - likelihood.max())
    theta = float(weights @ grid / weights.sum())
    if abs(theta * values[-1]) < _TINY:
        return 0.0, float(values.mean())
    xi = float(np.log1p(-theta * values).mean())
    if abs(xi) <= limit:
        return xi, -xi / theta
    xi = math.copysign(limit, xi)
    return xi, _scale(values, xi)


def _scale(values: np.ndarray, xi: float) -> float:
    """Root in beta of ``mean((1 + xi) y / (beta + xi y)) = 1``, the likelihood equation at a fixed shape."""
    low, high = max(0.0, -xi * float(values[-1])), 2 * (1 + abs(xi)) * float(values[-1])
    for _ in range(200):
        middle = (low + high) / 2
        if float(((1 + xi) * values / (middle + xi * values)).mean()) > 1:
            low = middle
        else:
            high = middle
    return high


def _anderson_darling(excess: np.ndarray, xi: float, beta: float) -> float:
    scaled = np.sort(excess) / beta
    log_survival = -scaled if abs(xi) < _TINY else -np.log1p(np.maximum(xi * scaled, _TINY - 1)) / xi
    below = np.clip(-np.expm1(log_survival), 1e-300, 1.0)
    m = len(scaled)
    return float(-m - ((2 * np.arange(1, m + 1) - 1) * (np.log(below) + log_survival[::-1])).mean())
