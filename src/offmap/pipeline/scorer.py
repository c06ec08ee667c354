"""Everything learned that turns one batch of signals into scores, p-values and bits."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from offmap.calibrate.conformal import Cross, Split
from offmap.calibrate.tail import Tail
from offmap.core.detector import Fitted, Localiser
from offmap.core.types import Signals

Calibrated = Split | Cross


@dataclass(frozen=True)
class Scored:
    """What a batch of N images gives.

    Args:
        score: raw, higher = more OOD, ``(N,)``.
        p_value: conformal, in (0, 1], ``(N,)``.
        bits_extrapolated: NaN below the cap, ``(N,)``.
        parts: raw score of each part, mean over folds, ``(N,)`` each.
    """

    score: np.ndarray
    p_value: np.ndarray
    bits_extrapolated: np.ndarray
    parts: Mapping[str, np.ndarray]

    @property
    def surprise_bits(self) -> np.ndarray:
        """``-log2(p)``."""
        return -np.log2(self.p_value) + 0.0


@dataclass(frozen=True, eq=False)
class Ensemble:
    """K fitted states of each part, and how their scores become one statistic.

    With one part and one state the statistic is the raw score. Otherwise each score is standardised by the mean and
    standard deviation it had on held-out in-distribution images, then averaged over parts (the statistic is calibrated
    itself, so its p-value is valid under any dependence between the parts).

    Args:
        parts: fitted states by part, K each.
        scale: mean and standard deviation on the held-out part, ``(P, K, 2)``.
    """

    parts: Mapping[str, tuple[Fitted, ...]]
    scale: np.ndarray

    @property
    def folds(self) -> int:
        """K."""
        return int(self.scale.shape[1])

    def raw(self, signals: Signals, folds: range | None = None) -> np.ndarray:
        """Raw scores ``(P, K, N)``, of some folds only if asked."""
        chosen = folds if folds is not None else range(self.folds)
        return np.stack([np.stack([fitted[k].score(signals).cpu().numpy() for k in chosen]) for fitted in self.parts.values()])

    def statistic(self, raw: np.ndarray, folds: range | None = None) -> np.ndarray:
        """One number a fold and image, ``(K, N)`` float32, from raw scores ``(P, K, N)``."""
        if raw.shape[0] == 1 and self.folds == 1:
            return np.asarray(raw[0], dtype=np.float32)
        scale = self.scale if folds is None else self.scale[:, list(folds)]
        return np.asarray(((raw - scale[..., :1]) / scale[..., 1:]).mean(axis=0), dtype=np.float32)

    def to(self, device: torch.device) -> "Ensemble":
        """The same on another device."""
        return Ensemble({name: tuple(f.to(device) for f in fitted) for name, fitted in self.parts.items()}, self.scale)


@dataclass(frozen=True, eq=False)
class Scorer:
    """An ensemble with its calibration, and the parts that draw maps.

    Args:
        maps: fitted localisers by part (one state each, also under cross-conformal calibration).
        map_limits: lower and upper oddness of the heat map's colours, by part, from in-distribution images.
    """

    ensemble: Ensemble
    calibrated: Calibrated
    tail: Tail
    maps: Mapping[str, Fitted]
    map_limits: Mapping[str, tuple[float, float]]

    def __call__(self, signals: Signals) -> Scored:
        """Scores, p-values and bits of a batch."""
        raw = self.ensemble.raw(signals)
        statistic = self.ensemble.statistic(raw)
        score = statistic.mean(axis=0, dtype=np.float64).astype(np.float32)
        p_value = self.calibrated.p_value(torch.from_numpy(statistic)).cpu().numpy()
        extrapolated = self.tail.bits_extrapolated(torch.from_numpy(score)).cpu().numpy()
        parts = dict(zip(self.ensemble.parts, raw.mean(axis=1), strict=True))
        return Scored(score, p_value, extrapolated, parts)

    def map(self, signals: Signals) -> np.ndarray | None:
        """Oddness per position ``(N, *s)`` of the first part that localises; None when no part does."""
        for fitted in self.maps.values():
            return fitted.map(signals).cpu().numpy()
        return None

    @property
    def needs(self) -> frozenset[str]:
        """Signals that scores need."""
        return frozenset().union(*(f[0].detector.needs for f in self.ensemble.parts.values()))

    @property
    def map_needs(self) -> frozenset[str]:
        """Signals that the map needs; empty when no part localises."""
        for fitted in self.maps.values():
            if isinstance(fitted.detector, Localiser):
                return fitted.detector.map_needs
        return frozenset()

    def to(self, device: torch.device) -> "Scorer":
        """The same on another device."""
        maps = {name: f.to(device) for name, f in self.maps.items()}
        return Scorer(self.ensemble.to(device), self.calibrated, self.tail, maps, self.map_limits)
