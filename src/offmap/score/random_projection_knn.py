"""k-NN on a random projection: a bank of wide features in little memory."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from offmap.core.detector import State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.linalg import unit_norm
from offmap.core.neighbours import kth_distance
from offmap.core.types import Signals
from offmap.score._bank import sampled
from offmap.score._layer import LayerDetector
from offmap.score.knn import default_k


@dataclass(frozen=True, kw_only=True)
class RandomProjectionKNN(LayerDetector):
    """Distance of ``R h / |h|`` to its k-th nearest neighbour, R a random Gaussian matrix with d rows that keeps distances.

    Means the same as in ``knn``, up to a relative error of about ``1 / sqrt(2 d)`` of each distance. R is drawn when the method is
    fitted and belongs to the state. Joining ``knn`` and a random projection is the project's own.

    Fitting costs ``N D d``, scoring ``d (D + M)`` an image for a bank of M rows; the state is ``d (M + D)`` numbers in float32, where
    ``knn`` has ``M D``.

    Fails as ``knn``, and where distances differ by less than the error of the projection: then raise ``components``.

    Args:
        layer: name of the layer; ``last`` is the encoder's deepest.
        components: d; where the layer is no wider, features are taken as they are.
        k: which neighbour; not given: 5 % of the bank, at least 1 and at most 50.
        max_bank: rows kept; a uniform sample of more.
    """

    components: int = 256
    k: int | None = None
    max_bank: int = 100_000

    reference: ClassVar[str] = (
        "Sun et al., ICML 2022, arXiv 2204.06507 (k-NN) on a projection as in Dasgupta & Gupta, An Elementary Proof of a Theorem of "
        "Johnson and Lindenstrauss, Random Struct. Algorithms 22 (2003)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.components < 1:
            raise ConfigError(f"random_projection_knn: components = {self.components} must be at least 1")
        if self.k is not None and self.k < 1:
            raise ConfigError(f"random_projection_knn: k = {self.k} must be at least 1")
        if self.max_bank < (self.k or 1):
            raise ConfigError(f"random_projection_knn: max_bank = {self.max_bank} must be at least k = {self.k or 1}")

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        projection = self._drawn(self.rows(next(iter(batches))), generator)
        bank = sampled(batches, lambda batch: self._projected(batch, projection).double(), self.max_bank, generator).float()
        if (self.k or 1) > len(bank):
            raise SignalError(f"random_projection_knn: k = {self.k} is more than the {len(bank)} images to fit on")
        return {"projection": projection, "bank": bank}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        bank = state["bank"]
        return kth_distance(self._projected(signals, state["projection"]), bank, self.k or default_k(len(bank)))

    def _drawn(self, rows: Float64[Tensor, "n d"], generator: torch.Generator) -> Float32[Tensor, "d p"]:
        width = rows.shape[1]
        if width <= self.components:
            return torch.eye(width, dtype=torch.float32, device=rows.device)
        drawn = torch.randn(width, self.components, dtype=torch.float64, generator=generator, device=generator.device)
        return (drawn / sqrt(self.components)).to(device=rows.device, dtype=torch.float32)

    def _projected(self, signals: Signals, projection: Float32[Tensor, "d p"]) -> Float32[Tensor, "n p"]:
        return unit_norm(self.rows_as_given(signals, len(projection))).float() @ projection
