"""What methods over the features of one layer share."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from offmap.core.detector import Detector
from offmap.core.errors import ConfigError, SignalError
from offmap.core.types import Signals

CACHED = 1024
"""Rows at a time."""


@dataclass(frozen=True, kw_only=True)
class LayerDetector(Detector):
    """Reads the features of one layer.

    Args:
        layer: name of the layer; ``last`` is the encoder's deepest.
    """

    layer: str = "last"

    def __post_init__(self) -> None:
        if not self.layer or "*" in self.layer:
            raise ConfigError(f"{self.method()}: layer = {self.layer!r} must name one layer, such as 'last'")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({f"features.{self.layer}"})

    def rows(self, signals: Signals, width: int | None = None) -> Float64[Tensor, "n d"]:
        """The layer's features in float64.

        Raises:
            SignalError: they are not ``width`` numbers wide.
        """
        return rows_of(signals, f"features.{self.layer}", self.method(), width)

    def rows_as_given(self, signals: Signals, width: int | None = None) -> Float[Tensor, "n d"]:
        """The layer's features in the precision in which they came, float32 at least.

        Raises:
            SignalError: they are not ``width`` numbers wide.
        """
        return rows_as_given(signals, f"features.{self.layer}", self.method(), width)


def rows_of(signals: Signals, name: str, who: str, width: int | None = None) -> Float64[Tensor, "n d"]:
    """A signal of shape (N, D) in float64: for sums over images, and for whatever cancels.

    Raises:
        SignalError: it is of another shape, or not ``width`` numbers wide.
    """
    return rows_as_given(signals, name, who, width).double()


def rows_as_given(signals: Signals, name: str, who: str, width: int | None = None) -> Float[Tensor, "n d"]:
    """The same in float64 if it came so, else in float32, which is twice as fast: for scores in which nothing cancels.

    Raises:
        SignalError: it is of another shape, or not ``width`` numbers wide.
    """
    if name not in signals:
        raise SignalError(f"{who} was fitted on {name}; the batch has {', '.join(sorted(signals))}")
    rows = signals[name]
    if rows.ndim != 2 or rows.shape[1] == 0 or (width is not None and rows.shape[1] != width):
        expected = "D > 0" if width is None else f"{width}, as when it was fitted"
        raise SignalError(f"{who}: {name} of shape {tuple(rows.shape)} must be (N, {expected})")
    return rows if rows.dtype == torch.float64 else rows.float()


def row_products(rows: Float[Tensor, "n d"], others: Float[Tensor, "k d"], which: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Inner product of each row with one of the others, a few rows at a time, so that temporary values stay in the cache."""
    parts = zip(rows.split(CACHED), which.split(CACHED), strict=True)
    return torch.cat([(part * others[chosen]).sum(dim=1) for part, chosen in parts])


def distances(rows: Float[Tensor, "n d"], centre: Float[Tensor, " d"]) -> Float[Tensor, " n"]:
    """Euclidean distance of each row to one point, by differences."""
    return torch.cdist(rows, centre[None], compute_mode="donot_use_mm_for_euclid_dist")[:, 0]


def labels_of(signals: Signals, who: str) -> Int64[Tensor, " n"] | None:
    """The labels of a batch, None where it has none.

    Raises:
        SignalError: they are not whole numbers of shape (N,).
    """
    if "label" not in signals:
        return None
    labels = signals["label"]
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise SignalError(f"{who}: label of shape {tuple(labels.shape)} and type {labels.dtype} must be whole numbers of shape (N,)")
    return labels.long()
