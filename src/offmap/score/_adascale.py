"""What the two forms of AdaSCALE share: a percentile for each image, from how much a small change of its input moves its features."""

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.errors import ConfigError
from offmap.core.neighbours import Reservoir
from offmap.core.signals import named
from offmap.core.types import Signals
from offmap.score._head import HEAD, PENULTIMATE, head_of
from offmap.score._layer import rows_of
from offmap.score._shaping import MOST, Activations


@dataclass(frozen=True, kw_only=True)
class AdaptiveScaling(Detector):
    """Energy of scaled logits; the percentile of the scale falls as the statistic ``Q'`` of an image rises among those of the fit part.

    Args:
        p_min, p_max: percentiles.
        top: share of dimensions whose moved activation is summed.
        shift_top: share of dimensions whose change is summed.
        shift_weight: lambda.
        epsilon, share: of the change of the input.
        max_bank: values of ``Q'`` kept.
    """

    p_min: float = 75.0
    p_max: float = 85.0
    top: float = 0.05
    shift_top: float = 0.01
    shift_weight: float = 10.0
    epsilon: float = 0.5
    share: float = 0.05
    max_bank: int = 50_000

    passes: ClassVar[str] = "2F+1B"

    def __post_init__(self) -> None:
        who = self.method()
        if not 0 <= self.p_min <= self.p_max <= MOST:
            raise ConfigError(f"{who}: p_min = {self.p_min} and p_max = {self.p_max} must be in order, between 0 and {MOST:g}")
        for name in ("top", "shift_top", "share"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{who}: {name} = {getattr(self, name)} must be in (0, 1]")
        for name in ("shift_weight", "epsilon"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{who}: {name} = {getattr(self, name)} must be at least 0 and finite")
        if self.max_bank < 1:
            raise ConfigError(f"{who}: max_bank = {self.max_bank} must be at least 1")

    @property
    def moved(self) -> str:
        """Name of the signal of the changed input."""
        return named("adascale.features", {"epsilon": self.epsilon, "share": self.share})

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({PENULTIMATE, self.moved})

    @property
    def fit_needs(self) -> frozenset[str]:
        return self.needs | HEAD

    @abstractmethod
    def logits(self, state: State, rows: Float64[Tensor, "n d"], factor: Float64[Tensor, "n 1"]) -> Float64[Tensor, "n k"]:
        """The scaled logits."""

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        first = next(iter(batches))
        width = rows_of(first, PENULTIMATE, self.method()).shape[1]
        weight, bias = head_of(first, width, self.method())
        sample = Reservoir.empty(self.max_bank, weight.new_zeros(0, 1))
        for batch in batches:
            for rows in Activations([batch], self.method(), width):
                sample = sample.add(self.shift(rows, batch)[:, None], generator)
        return {"weight": weight, "bias": bias, "shifts": sample.rows[:, 0].sort().values}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        rows = rows_of(signals, PENULTIMATE, self.method(), state["weight"].shape[1])
        shifts = state["shifts"]
        at = torch.searchsorted(shifts, self.shift(rows, signals), right=True) / len(shifts)
        percentile = self.p_min + (1 - at.double()) * (self.p_max - self.p_min)
        return -self.logits(state, rows, factors(rows, percentile)).logsumexp(dim=1)

    def shift(self, rows: Float64[Tensor, "n d"], signals: Signals) -> Float64[Tensor, " n"]:
        """``Q'``: what is left of the largest activations after the change, and lambda times how far the very largest moved."""
        moved = rows_of(signals, self.moved, self.method(), rows.shape[1])
        order = rows.sort(dim=1, descending=True, stable=True).indices
        kept = order[:, : max(1, round(self.top * rows.shape[1]))]
        farther = order[:, : max(1, round(self.shift_top * rows.shape[1]))]
        left = moved.clamp_min(0).gather(1, kept).sum(dim=1)
        return left + self.shift_weight * (rows - moved).abs().gather(1, farther).sum(dim=1)


def factors(rows: Float64[Tensor, "n d"], percentile: Float64[Tensor, " n"]) -> Float64[Tensor, "n 1"]:
    """``exp(s1 / s2)``: sum of an image's activations over that of those above its own percentile; 1 where all are zero."""
    width = rows.shape[1]
    count = (width - (percentile / 100 * width).round()).long().clamp_min(1)
    sums = rows.sort(dim=1, descending=True).values.cumsum(dim=1).gather(1, count[:, None] - 1)
    return (rows.sum(dim=1, keepdim=True) / sums.clamp_min(1e-30)).exp()
