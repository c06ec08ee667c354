"""Distance to the k-th nearest in-distribution image."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.detector import State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.linalg import unit_norm
from offmap.core.neighbours import Reservoir, kth_distance
from offmap.core.types import Signals
from offmap.score._layer import LayerDetector


@dataclass(frozen=True, kw_only=True)
class KNN(LayerDetector):
    """Euclidean distance of ``h / |h|`` to its k-th nearest neighbour among the in-distribution images, in [0, 2].

    0 is a copy of an image of the bank, sqrt(2) a feature at right angles to all of it. Assumes no shape of the data.

    Fitting stores a bank of at most ``max_bank`` rows; scoring costs ``M D`` an image for M rows; the state is ``M D``
    numbers in float32.

    Fails where the in-distribution data is sparse: images of a rare kind are far from their neighbours and look odd,
    and where features hold many directions of noise, which all count the same.

    Args:
        layer: name of the layer; ``last`` is the encoder's deepest.
        k: which neighbour; not given: 5 % of the bank, at least 1 and at most 50.
        max_bank: rows kept; a uniform sample of more.
    """

    k: int | None = None
    max_bank: int = 50_000

    reference: ClassVar[str] = "Sun et al., Out-of-Distribution Detection with Deep Nearest Neighbors, ICML 2022, arXiv 2204.06507"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k is not None and self.k < 1:
            raise ConfigError(f"knn: k = {self.k} must be at least 1")
        if self.max_bank < (self.k or 1):
            raise ConfigError(f"knn: max_bank = {self.max_bank} must be at least k = {self.k or 1}")

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        parts = (unit_norm(self.rows_as_given(batch)).float() for batch in batches)
        first = next(parts)
        sample = reduce(lambda kept, rows: kept.add(rows, generator), parts, Reservoir.empty(self.max_bank, first).add(first, generator))
        if self.k is not None and self.k > len(sample.rows):
            raise SignalError(f"knn: k = {self.k} is more than the {len(sample.rows)} images to fit on")
        return {"bank": sample.rows}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        bank = state["bank"]
        k = self.k or default_k(len(bank))
        return kth_distance(unit_norm(self.rows_as_given(signals, bank.shape[1])).float(), bank, k)


def default_k(bank: int) -> int:
    """5 % of the bank, at least 1 and at most 50."""
    return min(50, max(1, round(0.05 * bank)))
