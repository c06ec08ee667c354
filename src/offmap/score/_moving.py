"""What methods share that look at the dimensions only that move most when images are mixed with others."""

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.errors import ConfigError
from offmap.core.types import Signals
from offmap.score._bank import sampled
from offmap.score._layer import LayerDetector, rows_of

SAMPLE = 2000
"""Images whose sorted features give the distances."""


@dataclass(frozen=True, kw_only=True)
class MovingDetector(LayerDetector):
    """Fits another detector on the ``keep`` dimensions farthest from their values in mixed images, by 1-D Wasserstein distance.

    Args:
        layer: name of the layer; ``last`` is the encoder's deepest.
        keep: share of dimensions.
        least: dimensions kept at least.
    """

    keep: float = 0.01
    least: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.keep <= 1:
            raise ConfigError(f"{self.method()}: keep = {self.keep} must lie in (0, 1]")
        if self.least < 1:
            raise ConfigError(f"{self.method()}: least = {self.least} must be at least 1")
        self.base()

    @abstractmethod
    def base(self) -> Detector:
        """The detector on the kept dimensions."""

    @property
    def fit_needs(self) -> frozenset[str]:
        return self.needs | {f"proxy_{name}" for name in self.needs}

    @property
    def fit_uses(self) -> frozenset[str]:
        return self.base().fit_uses

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        both = sampled(batches, self._both, SAMPLE, generator)
        moved = wasserstein(*both.chunk(2, dim=1))
        kept = moved.topk(count(self.keep, self.least, len(moved))).indices.sort().values
        unseen = None if held_out is None else _Narrow(self, held_out, kept)
        return {**self.base().learn(_Narrow(self, batches, kept), unseen, generator), "kept": kept, "width": torch.tensor(len(moved))}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        self.rows(signals, int(state["width"]))
        return self.base().raw_score(state, self.narrow(signals, state["kept"]))

    def narrow(self, signals: Signals, kept: Int64[Tensor, " k"]) -> Signals:
        """The batch with the kept dimensions only."""
        name = f"features.{self.layer}"
        labels = {"label": signals["label"]} if "label" in signals else {}
        return {**labels, name: rows_of(signals, name, self.method())[:, kept.to(signals[name].device)]}

    def _both(self, signals: Signals) -> Float64[Tensor, "n d2"]:
        """Features and proxy features of the same images side by side."""
        rows = self.rows(signals)
        return torch.cat([rows, rows_of(signals, f"proxy_features.{self.layer}", self.method(), rows.shape[1])], dim=1)


@dataclass(frozen=True)
class _Narrow:
    """Batches with the kept dimensions only, each time they are read."""

    owner: MovingDetector
    batches: Iterable[Signals]
    kept: Int64[Tensor, " k"]

    def __iter__(self) -> Iterator[Signals]:
        return (self.owner.narrow(batch, self.kept) for batch in self.batches)


def wasserstein(one: Float64[Tensor, "n d"], other: Float64[Tensor, "n d"]) -> Float64[Tensor, " d"]:
    """1-D Wasserstein distance of order one between two samples of equal size, dimension by dimension, in the features' unit."""
    return (one.sort(dim=0).values - other.sort(dim=0).values).abs().mean(dim=0)


def count(keep: float, least: int, width: int) -> int:
    """A share of the dimensions, rounded up, but not below ``least``, and never more than there are."""
    return min(width, max(least, math.ceil(keep * width - 1e-9)))
