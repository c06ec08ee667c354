"""Local outlier factor, for images that were not fitted on."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from offmap.core.detector import State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.linalg import unit_norm
from offmap.core.neighbours import k_nearest
from offmap.core.types import Signals
from offmap.score._bank import sampled
from offmap.score._layer import LayerDetector

SMALLEST = 1e-10
"""Least mean reachability distance; reached only where more than k images are copies of each other."""


@dataclass(frozen=True, kw_only=True)
class LOF(LayerDetector):
    """Local outlier factor of ``h / |h|``: the density about its k neighbours over the density about itself.

    With ``reach(x, o) = max(d_k(o), |x - o|)``, ``d_k(o)`` the distance of o to its k-th neighbour, the density is
    ``lrd(x) = 1 / mean_o reach(x, o)`` over the k neighbours of x, and the score is ``mean_o lrd(o) / lrd(x)``. About 1 for an image as
    dense as its neighbours, above 1 for one in a sparser place. Unlike ``knn``, a rare kind of image is usual among its own.

    Fitting compares a bank of M rows with itself, ``M^2 D``; scoring costs ``M D`` an image; the state is ``M (D + 2)`` numbers in float32.

    Fails where odd images lie in the bank together, k or more: they are usual to each other. With many copies in the bank the
    density there is without bounds, and images near them get enormous scores.

    Args:
        layer: name of the layer; ``last`` is the encoder's deepest.
        k: number of neighbours; fewer where the bank has fewer others.
        max_bank: rows kept; a uniform sample of more.
    """

    k: int = 20
    max_bank: int = 20_000

    reference: ClassVar[str] = (
        "Breunig et al., LOF: Identifying Density-Based Local Outliers, SIGMOD 2000, doi 10.1145/335191.335388, def. 5-7"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1:
            raise ConfigError(f"lof: k = {self.k} must be at least 1")
        if self.max_bank <= self.k:
            raise ConfigError(f"lof: max_bank = {self.max_bank} must be more than k = {self.k}")

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        bank = sampled(batches, lambda batch: unit_norm(self.rows(batch)), self.max_bank, generator).float()
        if len(bank) < 2:
            raise SignalError("lof: one image has no neighbours: give at least two to fit on")
        distances, index = k_nearest(bank, bank, min(self.k, len(bank) - 1), leave_one_out=True, exact=False)
        reach = distances[:, -1]
        return {"bank": bank, "reach": reach, "density": density(distances, index, reach)}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        bank = state["bank"]
        rows = unit_norm(self.rows_as_given(signals, bank.shape[1])).float()
        distances, index = k_nearest(rows, bank, min(self.k, len(bank) - 1), exact=False)
        return state["density"][index].mean(dim=1) / density(distances, index, state["reach"])


def density(distances: Float32[Tensor, "n k"], index: Int64[Tensor, "n k"], reach: Float32[Tensor, " m"]) -> Float32[Tensor, " n"]:
    """Local reachability density, from distances to neighbours and their own distance to their k-th neighbour."""
    return 1 / (torch.maximum(distances, reach[index]).mean(dim=1) + SMALLEST)
