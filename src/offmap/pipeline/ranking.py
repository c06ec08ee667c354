"""Who finds the synthetic anomalies best, and how sure that is: AUROC with bootstrap intervals over test images."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int

from offmap.pipeline.contest import Contestant, evaluations
from offmap.pipeline.synthetic import CLEAN, KINDS
from offmap.score.fusion import Fusion

REPEATS = 1000
TIE = 0.01
"""Largest difference of mean AUROC at which a cheaper detector is preferred; the paired interval must hold 0 as well."""

BASELINES = frozenset({"intensity"})
"""Methods that show what needs no network; ranked, and recommended only where nothing else was run."""

SMALL = 16.0
"""MB of state below which less of it is no advantage."""

FEWEST = 10
"""Copies of a kind below which it is left out."""

Scores = Float64[np.ndarray, " n"]
Counts = Float32[np.ndarray, "b n"]


@dataclass(frozen=True, eq=False)
class Standing:
    """One detector's evidence.

    Args:
        areas: AUROC of each kind of anomaly against clean test images.
        forms: AUROC of each file form against clean test images; 0.5 = it does not matter how a file was saved.
        local, whole: mean AUROC of anomalies of a part, and of the whole image.
        draws: mean of the two, as measured and then in each bootstrap sample.
    """

    one: Contestant
    areas: Mapping[str, float]
    forms: Mapping[str, float]
    local: float
    whole: float
    draws: Float64[np.ndarray, " b"]

    @property
    def mean(self) -> float:
        """Mean of ``local`` and ``whole``."""
        return float(self.draws[0])

    @property
    def interval(self) -> tuple[float, float]:
        """95 % percentile interval of ``mean``."""
        low, high = np.quantile(self.draws[1:], [0.025, 0.975])
        return float(low), float(high)

    @property
    def form(self) -> float:
        """The AUROC of a file form that is farthest from 0.5."""
        return max(self.forms.values(), key=lambda area: abs(area - 0.5), default=0.5)

    def ahead_of(self, other: "Standing") -> tuple[float, float, float]:
        """Difference of the means and its paired 95 % interval."""
        difference = self.draws - other.draws
        low, high = np.quantile(difference[1:], [0.025, 0.975])
        return float(difference[0]), float(low), float(high)

    @property
    def price(self) -> tuple[float, bool, bool, int]:
        """What makes one detector dearer than another, the same on every machine: passes, fusion, maps, doublings of state."""
        maps = any(name.startswith("feature_map") for name in self.one.needs)
        doublings = math.ceil(math.log2(max(self.one.state_mb, SMALL)))
        return evaluations(self.one.passes), isinstance(self.one.detector, Fusion), maps, doublings


@dataclass(frozen=True, eq=False)
class Draws:
    """Bootstrap samples of the test images, the same for every detector.

    Args:
        counts: how often each image is drawn; the first row is 1 everywhere: the images as they are.
        strangers: 1 where two images are of different units.
    """

    counts: Counts
    strangers: Float32[np.ndarray, "n n"]

    @classmethod
    def of(cls, units: Int[np.ndarray, " n"], *, seed: int, repeats: int = REPEATS) -> "Draws":
        """Samples in which images of one unit (a patient, or copies) go together."""
        _, inverse = np.unique(units, return_inverse=True)
        count = int(inverse.max()) + 1
        drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=repeats)[:, inverse]
        counts = np.concatenate([np.ones((1, len(units))), drawn]).astype(np.float32)
        return cls(counts, (inverse[:, None] != inverse[None]).astype(np.float32))


def areas_under(clean: Scores, other: Scores, counts: Counts, strangers: Float32[np.ndarray, "n n"]) -> Float64[np.ndarray, " b"]:
    """AUROC in each bootstrap sample, ties counted half; images without a score (NaN) are left out.

    Args:
        strangers: 1 where the pair of a clean image (row) and a copy (column) counts, 0 where both are of one unit. A copy is never
            compared with its own original, of which a bootstrap sample would hold too many pairs.

    Source: Hanley and McNeil, Radiology 143, 1982 (the Mann-Whitney form).
    """
    own, odd = np.isfinite(clean), np.isfinite(other)
    low, high, pairs = clean[own], other[odd], strangers[np.ix_(own, odd)]
    wins = pairs * ((high[None] > low[:, None]) + np.float32(0.5) * (high[None] == low[:, None]))
    total = ((counts[:, own] @ pairs) * counts[:, odd]).sum(axis=1, dtype=np.float64)
    won = ((counts[:, own] @ wins) * counts[:, odd]).sum(axis=1, dtype=np.float64)
    share: np.ndarray = np.divide(won, total, out=np.full(len(total), 0.5), where=total > 0)
    return share


def measure(one: Contestant, draws: Draws, used: Sequence[str]) -> Standing:
    """A contestant's standing on the kinds that are used."""
    clean = one.scores[CLEAN]
    found = {kind: areas_under(clean, one.scores[kind], draws.counts, draws.strangers) for kind in used if kind != CLEAN}
    groups = {group: {kind: area for kind, area in found.items() if KINDS[kind].group == group} for group in ("form", "local", "whole")}
    local, whole = (np.mean(list(groups[group].values()), axis=0) for group in ("local", "whole"))
    areas = {kind: float(area[0]) for group in ("local", "whole") for kind, area in groups[group].items()}
    forms = {kind: float(area[0]) for kind, area in groups["form"].items()}
    return Standing(one, areas, forms, float(local[0]), float(whole[0]), (local + whole) / 2)


def usable(scored: Sequence[Contestant]) -> list[str]:
    """Kinds of which there are enough copies, in their order; the same for every contestant, as all score the same copies."""
    counts = {kind: int(np.isfinite(values).sum()) for one in scored[:1] for kind, values in one.scores.items()}
    return [kind for kind in KINDS if counts.get(kind, 0) >= FEWEST]


def order(standings: Sequence[Standing]) -> list[Standing]:
    """The best first; equal ones by price and name."""
    return sorted(standings, key=lambda s: (-round(s.mean, 12), s.price, s.one.name))


def candidates(ranked: Sequence[Standing]) -> list[Standing]:
    """Those that may be recommended, in their order: all but baselines, which win where damage changes brightness above all."""
    return [s for s in ranked if s.one.detector.method() not in BASELINES] or list(ranked)


def choose(ranked: Sequence[Standing]) -> Standing:
    """The cheapest of the candidates that cannot be told from the best; the best of those that cost alike."""
    ranked = candidates(ranked)
    best = ranked[0]
    ties = [s for s in ranked if best.mean - s.mean <= TIE and best.ahead_of(s)[1] <= 0]
    return min(ties, key=lambda s: s.price)
