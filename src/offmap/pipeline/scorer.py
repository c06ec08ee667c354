"""Everything learned that turns one batch of signals into scores, p-values and bits."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from offmap.calibrate.combine import Combined
from offmap.calibrate.conformal import Calibrated
from offmap.calibrate.tail import FittedTail
from offmap.core.detector import Fitted, Localiser
from offmap.core.types import Signals
from offmap.score.fusion import Fusion


@dataclass(frozen=True, eq=False)
class Degree:
    """How odd N images are.

    Args:
        score: raw with a split, mean of the standardised fold scores otherwise; higher = more OOD.
        p_value: conformal, in (0, 1].
        surprise_bits: ``-log2(p_value)``, at most ``log2(n + 1)``.
        bits_extrapolated: by the tail, without guarantee; NaN below the cap.
        parts: raw score of each part, mean over folds; after those of a fusion, ``<part>.<detector>``: what each of its detectors
            contributes, standardised.
    """

    score: Tensor
    p_value: Tensor
    surprise_bits: Tensor
    bits_extrapolated: Tensor
    parts: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Ensemble:
    """K fitted states of each part, and how the parts become one statistic a fold.

    With one part the statistic is its raw score. With several it is their combination, standardised on held-out
    in-distribution images; it is calibrated itself, so its p-value is valid under any dependence between the parts.

    Args:
        parts: fitted states by part, K each.
        combined: one a fold; empty with one part.
    """

    parts: Mapping[str, tuple[Fitted, ...]]
    combined: tuple[Combined, ...] = ()

    @property
    def folds(self) -> int:
        """K."""
        return len(next(iter(self.parts.values())))

    def raw(self, k: int, signals: Signals) -> dict[str, Tensor]:
        """Raw scores ``(N,)`` of each part of fold k."""
        return {name: states[k].score(signals).cpu() for name, states in self.parts.items()}

    def contributions(self, signals: Signals) -> dict[str, Tensor]:
        """What each detector of a fusion contributes, as ``<part>.<detector>``, mean over folds; empty without a fusion."""
        out: dict[str, Tensor] = {}
        for name, states in self.parts.items():
            found = [fitted.contributions(signals) for fitted in states]
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
        map_limits: lower and upper oddness of the heat map's colours, by part, from in-distribution images.
    """

    ensemble: Ensemble
    ranks: Calibrated
    tail: FittedTail
    maps: Mapping[str, Fitted]
    map_limits: Mapping[str, tuple[float, float]]

    def __call__(self, signals: Signals) -> Degree:
        """Degree of the images of one batch."""
        raw = [self.ensemble.raw(k, signals) for k in range(self.ensemble.folds)]
        statistic = torch.stack([self.ensemble.statistic(k, scores) for k, scores in enumerate(raw)])
        parts = {name: torch.stack([scores[name] for scores in raw]).mean(dim=0) for name in self.ensemble.parts}
        parts |= self.ensemble.contributions(signals)
        score, p_value = self.ranks.score(statistic), self.ranks.p_value(statistic)
        extrapolated = self.tail.bits_extrapolated(score, at_cap=p_value <= 1 / (self.ranks.n + 1))
        return Degree(score, p_value, self.ranks.surprise(p_value), extrapolated, parts)

    def map(self, signals: Signals) -> np.ndarray | None:
        """Oddness per position ``(N, *s)``; None when no part localises."""
        for fitted in self.maps.values():
            return np.asarray(fitted.map(signals).cpu().numpy())
        return None

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all parts of a degree: those of the recipe, and the detectors of fusions among them."""
        fused = {name: states[0].detector for name, states in self.ensemble.parts.items()}
        return (*fused, *(f"{name}.{key}" for name, d in fused.items() if isinstance(d, Fusion) for key in d.methods))

    @property
    def needs(self) -> frozenset[str]:
        """Signals that scores need."""
        needs: frozenset[str] = frozenset()
        return needs.union(*(states[0].detector.needs for states in self.ensemble.parts.values()))

    @property
    def map_needs(self) -> frozenset[str]:
        """Signals that the map needs; empty when no part localises."""
        needs: frozenset[str] = frozenset()
        return needs.union(*(f.detector.map_needs for f in self.maps.values() if isinstance(f.detector, Localiser)))

    def to(self, device: torch.device) -> "Scorer":
        """The same on another device."""
        maps = {name: f.to(device) for name, f in self.maps.items()}
        return Scorer(self.ensemble.to(device), self.ranks, self.tail, maps, self.map_limits)
