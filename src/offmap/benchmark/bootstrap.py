"""Bootstrap over images, or patients where they are known: every metric of many resamples at once, the same draws for every method.

Images are drawn anew, detectors stay as fitted (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Shaped

Scores = Shaped[np.ndarray, " _"]
Replicates = Float[np.ndarray, " b"]
Counts = Float[np.ndarray, "b _"]

CELLS = 4_000_000
"""Resamples times images that are looked at together; bounds the memory of large sets."""

METRICS = ("auroc", "aupr_in", "aupr_out", "fpr95_ood_positive", "fpr95_id_positive")
"""Names of the metrics, as the functions of ``offmap.benchmark.metrics``."""


def draws(name: str, count: int, *, repeats: int, seed: int = 0, patients: Sequence[str] = ()) -> Float32[np.ndarray, "{repeats} {count}"]:
    """How often each image of a set is drawn in each resample; the same for equal arguments, whoever asks.

    Args:
        name: of the set.
        count: its number of images.
        repeats: number of resamples.
        seed: of the benchmark.
        patients: of each image, drawn with all their images; an image of an unknown one (empty) is drawn alone.
    """
    text = hashlib.sha256(f"{seed}:{name}:{count}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(text[:16], "big"))
    units = [who or f"\0{i}" for i, who in enumerate(patients)] or [f"\0{i:09d}" for i in range(count)]
    _, unit = np.unique(units, return_inverse=True)
    number = int(unit.max(initial=-1)) + 1
    return rng.multinomial(number, np.full(number, 1 / number), size=repeats).astype(np.float32)[:, unit]


def replicates(
    own: Scores, other: Scores, own_counts: Float[np.ndarray, "b n"], other_counts: Float[np.ndarray, "b m"]
) -> dict[str, Replicates]:
    """Each metric of each resample; NaN where a resample holds no image of one kind.

    Args:
        own, other: scores of in-distribution and other images, higher = more OOD, finite.
        own_counts, other_counts: how often each image is drawn, from ``draws`` (or columns of it).
    """
    step = max(1, CELLS // (len(own) + len(other)))
    parts = [_replicates(own, other, own_counts[i : i + step], other_counts[i : i + step]) for i in range(0, len(own_counts), step)]
    return {name: np.concatenate([part[name] for part in parts]) for name in METRICS}


def _replicates(own: Scores, other: Scores, own_counts: Counts, other_counts: Counts) -> dict[str, Replicates]:
    ladder = _Ladder.of(own, other, own_counts, other_counts)
    both = (ladder.caught[:, -1] > 0) & (ladder.flagged[:, -1] > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {name: np.where(both, getattr(ladder, name)(), np.nan) for name in METRICS}


def interval(values: Mapping[str, Replicates], *, level: float = 0.95) -> dict[str, tuple[float, float]]:
    """Percentile interval of each metric; NaN where no resample has a value."""
    tails = [(1 - level) / 2, (1 + level) / 2]
    out = {}
    for name, found in values.items():
        good = found[np.isfinite(found)]
        low, high = np.quantile(good, tails) if len(good) else (np.nan, np.nan)
        out[name] = (float(low), float(high))
    return out


@dataclass(frozen=True, eq=False)
class _Ladder:
    """Counts above each distinct score, from the highest score down.

    Args:
        caught: OOD images at or above the g-th distinct score, ``(B, G)``.
        flagged: in-distribution images there.
    """

    caught: Float[np.ndarray, "b g"]
    flagged: Float[np.ndarray, "b g"]

    @classmethod
    def of(cls, own: Scores, other: Scores, own_counts: Float[np.ndarray, "b n"], other_counts: Float[np.ndarray, "b m"]) -> "_Ladder":
        scores = np.concatenate([own, other]).astype(np.float64)
        order = np.argsort(-scores, kind="stable")
        ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
        counts = np.concatenate([own_counts, other_counts], axis=1)[:, order].astype(np.float64)
        odd = order >= len(own)
        return cls(np.cumsum(counts * odd, axis=1)[:, ends], np.cumsum(counts * ~odd, axis=1)[:, ends])

    @property
    def steps(self) -> tuple[Float[np.ndarray, "b g"], Float[np.ndarray, "b g"]]:
        """OOD and in-distribution images at each distinct score."""
        return np.diff(self.caught, axis=1, prepend=0.0), np.diff(self.flagged, axis=1, prepend=0.0)

    def auroc(self) -> Replicates:
        odd, usual = self.steps
        won: np.ndarray = ((self.caught - odd / 2) * usual).sum(axis=1)
        return np.asarray(won / (self.caught[:, -1] * self.flagged[:, -1]))

    def aupr_out(self) -> Replicates:
        odd, _ = self.steps
        precision = np.nan_to_num(self.caught / (self.caught + self.flagged))
        return np.asarray((odd * precision).sum(axis=1) / self.caught[:, -1])

    def aupr_in(self) -> Replicates:
        odd, usual = self.steps
        kept, passed = self.flagged[:, -1:] - self.flagged + usual, self.caught[:, -1:] - self.caught + odd
        precision = np.nan_to_num(kept / (kept + passed))
        return np.asarray((usual * precision).sum(axis=1) / self.flagged[:, -1])

    def fpr95_ood_positive(self) -> Replicates:
        enough = self.caught >= np.ceil(0.95 * self.caught[:, -1:] - 1e-9)
        at = enough.argmax(axis=1)
        return np.asarray(self.flagged[np.arange(len(at)), at] / self.flagged[:, -1])

    def fpr95_id_positive(self) -> Replicates:
        odd, usual = self.steps
        kept = self.flagged[:, -1:] - self.flagged + usual
        enough = kept >= np.ceil(0.95 * self.flagged[:, -1:] - 1e-9)
        at = enough.shape[1] - 1 - enough[:, ::-1].argmax(axis=1)
        passed = (self.caught[:, -1:] - self.caught + odd)[np.arange(len(at)), at]
        return np.asarray(passed / self.caught[:, -1])
