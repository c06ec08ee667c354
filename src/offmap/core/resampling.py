"""Intervals by drawing images, or patients, anew (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).

The same seed draws the same images for every number that is asked, so that differences between numbers are paired.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from offmap.core.errors import ConfigError

REPEATS = 1000
"""Bootstrap samples."""

LARGE = 10_000
"""Images above which replicates are drawn from bins of like images, as long as each image is a unit of its own."""

_CELLS = 4_000_000
"""Numbers of one kind held in memory at once."""

_BINS = 2000


@dataclass(frozen=True, slots=True)
class Measure:
    """A number with its interval; NaN where it does not exist.

    Args:
        value: on the images at hand.
        low, high: ends of the interval.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Resampling:
    """How intervals are made.

    Args:
        repeats: bootstrap samples, 100 or more.
        level: of the interval, in (0, 1).
        seed: of the draws.
    """

    repeats: int = REPEATS
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.repeats < 100 or not 0 < self.level < 1:
            raise ConfigError(f"repeats = {self.repeats} must be at least 100 and level = {self.level} must lie in (0, 1)")

    def draws(self, *units: Int[np.ndarray, " _"]) -> Iterator[tuple[Float[np.ndarray, "b _"], ...]]:
        """How often each image of each set is drawn, a few samples at a time; images of one unit go together.

        Args:
            units: for each set 0, 1, 2 ...: which unit (image or patient) each image belongs to.
        """
        rngs = [np.random.default_rng([self.seed, i]) for i in range(len(units))]
        counts = [int(of.max()) + 1 for of in units]
        size = max(1, _CELLS // max(len(of) for of in units))
        for start in range(0, self.repeats, size):
            b = min(size, self.repeats - start)
            drawn = [rng.multinomial(n, np.full(n, 1 / n), size=b) for rng, n in zip(rngs, counts, strict=True)]
            yield tuple(rows[:, of].astype(np.float64) for rows, of in zip(drawn, units, strict=True))

    def weighted(self, *weights: Int[np.ndarray, " _"]) -> Iterator[tuple[Float[np.ndarray, "b _"], ...]]:
        """As ``draws`` for sets of which ``weights`` images each are alike, so that only their number in a sample matters."""
        rngs = [np.random.default_rng([self.seed, i]) for i in range(len(weights))]
        size = max(1, _CELLS // max(len(of) for of in weights))
        for start in range(0, self.repeats, size):
            b = min(size, self.repeats - start)
            yield tuple(
                rng.multinomial(int(of.sum()), of / of.sum(), size=b).astype(np.float64) for rng, of in zip(rngs, weights, strict=True)
            )

    def interval(self, replicates: Float[np.ndarray, " b"]) -> tuple[float, float]:
        """Percentile interval; NaN where fewer than half of the samples have a value."""
        good = replicates[np.isfinite(replicates)]
        if 2 * len(good) < len(replicates):
            return float("nan"), float("nan")
        low, high = np.quantile(good, [(1 - self.level) / 2, (1 + self.level) / 2])
        return float(low), float(high)


def units_of(groups: Sequence[str]) -> Int[np.ndarray, " n"]:
    """Numbers of the units: images of one group are one unit, an image without a group is its own."""
    number: dict[tuple[str, int], int] = {}
    keys = [(group, -1) if group else ("", i) for i, group in enumerate(groups)]
    return np.array([number.setdefault(key, len(number)) for key in keys], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Binned:
    """Images of like value and equal mark, taken together.

    Args:
        values: mean value of each bin.
        marks: the mark of its images.
        weights: how many there are.
    """

    values: Float[np.ndarray, " c"]
    marks: Float[np.ndarray, " c"]
    weights: Int[np.ndarray, " c"]

    @classmethod
    def of(cls, values: Float[np.ndarray, " n"], marks: Float[np.ndarray, " n"]) -> "Binned":
        """Two thousand bins by rank, each divided by the mark (0 or 1); equal values stay together.

        A value of ``-inf`` (not assessed) has a bin of its own.
        """
        order = np.argsort(values, kind="stable")
        rising = values[order]
        first = np.maximum.accumulate(np.where(np.r_[True, rising[1:] != rising[:-1]], np.arange(len(values)), 0))
        bins = np.where(np.isfinite(rising), 1 + first * _BINS // len(values), 0)
        _, cell, weights = np.unique(2 * bins + (marks[order] > 0), return_inverse=True, return_counts=True)
        mean = np.bincount(cell, np.where(np.isfinite(rising), rising, 0.0)) / weights
        lost = np.bincount(cell, ~np.isfinite(rising)) > 0
        return cls(np.where(lost, -np.inf, mean), np.bincount(cell, marks[order]) / weights, weights.astype(np.int64))


def independent(units: Int[np.ndarray, " n"]) -> bool:
    """Whether each image is a unit of its own."""
    return int(units.max()) + 1 == len(units)
