"""What methods share that reshape the penultimate activations and take the energy of what the head makes of them."""

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.types import Signals
from offmap.score._head import HEAD, PENULTIMATE, head_of
from offmap.score._layer import rows_as_given, rows_of

BINS, ROUNDS = 4096, 3
ROWS = 1024
"""Images shaped at a time."""

MOST = 98.0
"""Largest percentile: sums differ at most fifty-fold, so that their exponential stays finite."""


@dataclass(frozen=True)
class Activations:
    """Penultimate features in float64, batch by batch, each time they are read; none is negative.

    Args:
        batches: signals that can be read again.
        who: name of the method, for messages.
        width: of the features.
    """

    batches: Iterable[Signals]
    who: str
    width: int

    def __iter__(self) -> Iterator[Float64[Tensor, "n d"]]:
        for batch in self.batches:
            rows = rows_of(batch, PENULTIMATE, self.who, self.width)
            if bool((rows < 0).any()):
                share = float((rows < 0).double().mean())
                raise SignalError(
                    f"{self.who}: {share:.1%} of {PENULTIMATE} are negative (least {float(rows.min()):.3g}). Activation shaping needs the "
                    "output of a rectifier: sums and percentiles of activations mean nothing for transformers and the like. "
                    "Use a method of the features instead, such as mahalanobis_pp or knn"
                )
            yield rows

    def percentile(self, percent: float) -> float:
        """The least activation that at least ``percent`` of all activations of all images do not exceed.

        By histograms in passes that each look 4096 times closer, so nothing is kept, and batches may be cut anywhere; right to
        1e-10 of the largest activation.
        """
        low, high = 0.0, max(float(rows.max()) for rows in self)
        rank = math.ceil(percent / 100 * sum(rows.numel() for rows in self))
        for _ in range(ROUNDS):
            if not high > low:
                break
            below = sum(int((rows < low).sum()) for rows in self)
            counts = torch.stack([_histogram(rows, low, high) for rows in self]).sum(dim=0)
            at = min(int((counts.cumsum(0) + below < rank).sum()), BINS - 1)
            width = (high - low) / BINS
            low, high = low + at * width, low + (at + 1) * width
        return low


def _histogram(rows: Float64[Tensor, "n d"], low: float, high: float) -> Int64[Tensor, " b"]:
    inside = rows[(rows >= low) & (rows <= high)]
    index = ((inside - low) / (high - low) * BINS).long().clamp_max(BINS - 1)
    return torch.bincount(index, minlength=BINS).cpu()


@dataclass(frozen=True, kw_only=True)
class ShapingDetector(Detector):
    """Minus the logsumexp of the logits that the head makes of shaped activations."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({PENULTIMATE})

    @property
    def fit_needs(self) -> frozenset[str]:
        return self.needs | HEAD

    @abstractmethod
    def logits(self, state: State, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """The shaped logits, in the precision of the rows."""

    def limits(self, activations: Activations, weight: Float64[Tensor, "k d"]) -> Mapping[str, Tensor]:
        """What is learned beside the head; may replace ``weight``."""
        for _ in activations:
            pass
        return {}

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        first = next(iter(batches))
        width = rows_of(first, PENULTIMATE, self.method()).shape[1]
        weight, bias = head_of(first, width, self.method())
        return {"weight": weight, "bias": bias, **self.limits(Activations(batches, self.method(), width), weight)}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        rows = rows_as_given(signals, PENULTIMATE, self.method(), state["weight"].shape[1])
        return torch.cat([-self.logits(state, part).logsumexp(dim=1) for part in rows.split(ROWS)])


def through_head(state: State, rows: Float[Tensor, "n d"], factor: Float[Tensor, "n 1"] | None = None) -> Float[Tensor, "n k"]:
    """``W h + b``, or ``factor W h + b``."""
    weight, bias = state["weight"].to(rows).T, state["bias"].to(rows)
    return torch.addmm(bias, rows, weight) if factor is None else torch.mm(rows, weight).mul_(factor).add_(bias)


@dataclass(frozen=True, kw_only=True)
class PercentileShaping(ShapingDetector):
    """Shapes each image by the activations above a percentile of its own.

    Args:
        percentile: share of an image's activations, in %, that lies below.
    """

    percentile: float = 90.0

    def __post_init__(self) -> None:
        if not 0 <= self.percentile <= MOST:
            raise ConfigError(f"{self.method()}: percentile = {self.percentile} must be between 0 and {MOST:g}")

    def kept(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The largest activations of each image; zero elsewhere."""
        top, where = self.largest(rows)
        return torch.zeros_like(rows).scatter_(1, where, top)

    def largest(self, rows: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n m"], Int64[Tensor, "n m"]]:
        """The ``D - round(percentile/100 D)`` largest activations of each image, at least one, and where they are; in any order."""
        top, where = rows.topk(kept_count(rows.shape[1], self.percentile), dim=1, sorted=False)
        return top, where


def kept_count(width: int, percentile: float) -> int:
    """How many of ``width`` activations lie above the percentile, at least one."""
    return max(1, width - round(width * percentile / 100))


def concentration(rows: Float[Tensor, "n d"], kept: Float[Tensor, "n m"]) -> Float[Tensor, "n 1"]:
    """Sum of all activations over the sum of those kept, >= 1 and at most D over their number; 0 where all are zero."""
    return rows.sum(dim=1, keepdim=True) / kept.sum(dim=1, keepdim=True).clamp_min(1e-30)
