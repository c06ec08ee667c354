"""Everything learned that turns one batch of signals into scores, p-values and bits."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from offmap.calibrate.cascade import Cascaded
from offmap.calibrate.combine import Combined
from offmap.calibrate.conformal import Calibrated
from offmap.calibrate.tail import FittedTail
from offmap.core.detector import Fitted, Localiser, select
from offmap.core.types import STATIC, Signals
from offmap.represent.deferred import RAN
from offmap.score.fusion import Fusion

EVERYWHERE = 1.5
"""How much larger than any usual one the median of a map is, where the image as a whole is foreign."""


@dataclass(frozen=True, eq=False)
class Degree:
    """How odd N images are.

    Args:
        score: raw with a split, mean of the standardised fold scores otherwise; higher = more OOD.
        p_value: conformal, in (0, 1].
        surprise_bits: ``-log2(p_value)``, at most ``log2(n + 1)``.
        bits_extrapolated: by the tail, without guarantee; NaN below the cap.
        parts: raw score of each part, mean over folds, NaN where the second part of a cascade did not run; after those of a fusion,
            ``<part>.<detector>``: what each of its detectors contributes, standardised.
    """

    score: Tensor
    p_value: Tensor
    surprise_bits: Tensor
    bits_extrapolated: Tensor
    parts: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Ensemble:
    """K fitted states of each part, and how the parts become one statistic a fold.

    With one part the statistic is its raw score. With several it is their combination or cascade, standardised on held-out
    in-distribution images; it is calibrated itself, so its p-value is valid under any dependence between the parts.

    Args:
        parts: fitted states by part, K each.
        combined: one a fold; empty with one part.
    """

    parts: Mapping[str, tuple[Fitted, ...]]
    combined: tuple[Combined | Cascaded, ...] = ()

    @property
    def folds(self) -> int:
        """K."""
        return len(next(iter(self.parts.values())))

    def raw(self, k: int, signals: Signals) -> dict[str, Tensor]:
        """Raw scores ``(N,)`` of each part of fold k; of the second part of a cascade NaN where the first is decided."""
        law = self.combined[k] if self.combined else None
        if not isinstance(law, Cascaded):
            return {name: states[k].score(signals).cpu() for name, states in self.parts.items()}
        first, then = law.cascade.first, self.parts[law.cascade.then][k]
        cheap = self.parts[first][k].score(signals).cpu()
        passed = law.undecided(cheap)
        if RAN in signals:
            passed &= signals[RAN].cpu() > 0
        dear, rows = torch.full_like(cheap, torch.nan), torch.nonzero(passed).flatten()
        if len(rows):
            dear[rows] = then.score(_rows(signals, then.detector.needs, rows)).cpu()
        return {first: cheap, law.cascade.then: dear}

    @property
    def cascade(self) -> Cascaded | None:
        """The cascade of the first fold; None where all parts run on every image."""
        law = self.combined[0] if self.combined else None
        return law if isinstance(law, Cascaded) else None

    def undecided(self, signals: Signals, fold: int | None = None) -> Tensor:
        """Images ``(N,)`` that the second part of the cascade must see, in one fold, or in any."""
        laws = [(k, law) for k, law in enumerate(self.combined) if isinstance(law, Cascaded) and fold in (None, k)]
        passed = [law.undecided(self.parts[law.cascade.first][k].score(signals).cpu()) for k, law in laws]
        return torch.stack(passed).any(dim=0)

    @property
    def fused(self) -> dict[str, Fusion]:
        """Parts that are fusions and run on every image."""
        then = "" if self.cascade is None else self.cascade.cascade.then
        found = {name: states[0].detector for name, states in self.parts.items() if name != then}
        return {name: detector for name, detector in found.items() if isinstance(detector, Fusion)}

    def contributions(self, signals: Signals) -> dict[str, Tensor]:
        """What each detector of a fusion contributes, as ``<part>.<detector>``, mean over folds; empty without a fusion."""
        out: dict[str, Tensor] = {}
        for name in self.fused:
            found = [fitted.contributions(signals) for fitted in self.parts[name]]
            out |= {f"{name}.{key}": torch.stack([one[key] for one in found]).mean(dim=0).cpu() for key in found[0]}
        return out

    def statistic(self, k: int, raw: Mapping[str, Tensor]) -> Tensor:
        """The number ``(N,)`` that is calibrated, float32."""
        return self.combined[k].score(raw).float() if self.combined else next(iter(raw.values()))

    def to(self, device: torch.device) -> "Ensemble":
        """The same on another device."""
        return Ensemble({name: tuple(f.to(device) for f in states) for name, states in self.parts.items()}, self.combined)


@dataclass(frozen=True, eq=False)
class Scorer:
    """An ensemble with its calibration, and the part that draws maps.

    Args:
        maps: fitted localiser by part (one state, also under cross-conformal calibration); empty without one.
        map_limits: lower and upper oddness of the heat map's colours, by part, from in-distribution images; of a map that restores,
            also the largest median of one of their maps.
    """

    ensemble: Ensemble
    ranks: Calibrated
    tail: FittedTail
    maps: Mapping[str, Fitted]
    map_limits: Mapping[str, tuple[float, ...]]

    def __call__(self, signals: Signals) -> Degree:
        """Degree of the images of one batch."""
        raw = [self.ensemble.raw(k, signals) for k in range(self.ensemble.folds)]
        statistic = torch.stack([self.ensemble.statistic(k, scores) for k, scores in enumerate(raw)])
        parts = {name: torch.stack([scores[name] for scores in raw]).nanmean(dim=0) for name in self.ensemble.parts}
        parts |= self.ensemble.contributions(signals)
        score, p_value = self.ranks.score(statistic), self.ranks.p_value(statistic)
        extrapolated = self.tail.bits_extrapolated(score, at_cap=p_value <= 1 / (self.ranks.n + 1))
        return Degree(score, p_value, self.ranks.surprise(p_value), extrapolated, parts)

    def map(self, signals: Signals) -> np.ndarray | None:
        """Oddness per position ``(N, *s)``; None when no part localises."""
        for fitted in self.maps.values():
            return np.asarray(fitted.map(signals).cpu().numpy())
        return None

    def foreign(self, drawn: np.ndarray) -> bool:
        """Whether a map points nowhere: its model restores usual images, and all over this one there is more left than ever over those.

        The median of the map is compared with 1.5 times the largest median of in-distribution images that the detector did not learn from.

        Args:
            drawn: map of one image.
        """
        for name, fitted in self.maps.items():
            detector, (_, _, *everywhere) = fitted.detector, self.map_limits[name]
            restores = isinstance(detector, Localiser) and detector.restores
            return restores and bool(everywhere) and float(np.median(drawn)) > EVERYWHERE * everywhere[0]
        return False

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all parts of a degree: those of the recipe, and the detectors of fusions among them."""
        return (*self.ensemble.parts, *(f"{name}.{key}" for name, detector in self.ensemble.fused.items() for key in detector.methods))

    @property
    def needs(self) -> frozenset[str]:
        """Signals that scores need."""
        needs: frozenset[str] = frozenset()
        return needs.union(*(states[0].detector.needs for states in self.ensemble.parts.values()))

    @property
    def dear(self) -> frozenset[str]:
        """Signals that only the second part of a cascade reads; empty without one."""
        law = self.ensemble.cascade
        if law is None:
            return frozenset()
        cheap, dear = (self.ensemble.parts[name][0].detector.needs for name in (law.cascade.first, law.cascade.then))
        return dear - cheap - frozenset(STATIC)

    @property
    def map_needs(self) -> frozenset[str]:
        """Signals that the map needs; empty when no part localises."""
        needs: frozenset[str] = frozenset()
        return needs.union(*(f.detector.map_needs for f in self.maps.values() if isinstance(f.detector, Localiser)))

    def to(self, device: torch.device) -> "Scorer":
        """The same on another device."""
        maps = {name: f.to(device) for name, f in self.maps.items()}
        return Scorer(self.ensemble.to(device), self.ranks, self.tail, maps, self.map_limits)


def _rows(signals: Signals, needs: frozenset[str], rows: Tensor) -> dict[str, Tensor]:
    """Some images of the signals that a detector reads."""
    found = {name: value for pattern in needs for name, value in select(signals, pattern).items()}
    return {name: value if name in STATIC else value[rows.to(value.device)] for name, value in found.items()}
