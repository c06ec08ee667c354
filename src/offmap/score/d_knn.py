"""Nearest neighbours in the principal subspace and outside it, each on its own scale."""

from collections.abc import Iterable
from dataclasses import dataclass
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
from offmap.score._subspace import holding, principal_axes
from offmap.score.knn import default_k

NARROWEST = 1e-6
"""Least deviation of a distance; reached only where the images are copies of each other."""


@dataclass(frozen=True, kw_only=True)
class DKNN(LayerDetector):
    """D-KNN, ``z(d_in) + z(d_out)``: distances of ``h / |h|`` to its k-th neighbour inside the principal subspace and outside it.

    Each distance is standardised by mean and deviation over held-out in-distribution images, or over the bank, each image
    of it compared with the others, where none are held out. Plain k-NN is ruled by the subspace, where features vary most;
    here what little happens outside counts as much. The number is about 0 for a typical image, in standard deviations.

    That both distances are calibrated is the paper's; standardising by mean and deviation is the project's reading of it.

    Fitting stores a bank of M rows, ``M D^2 + D^3``, and compares it with itself, ``M^2 D``, where none are held out; scoring
    costs ``2 M D`` an image; the state is ``M (d + D) + (d + 1) D`` numbers.

    Fails where the noise outside the subspace differs between scanners or sizes: it counts fully. As with ``knn``, images of a
    rare kind look odd.

    Args:
        layer: name of the layer; ``last`` is the encoder's deepest.
        k: which neighbour; not given: 5 % of the bank, at least 1 and at most 50.
        variance: share of the trace that the subspace holds, in (0, 1).
        max_bank: rows kept; a uniform sample of more.
    """

    k: int | None = None
    variance: float = 0.9
    max_bank: int = 50_000

    reference: ClassVar[str] = (
        "Peng et al., Breaking Semantic Hegemony: Decoupling Principal and Residual Subspaces for Generalized OOD Detection, 2026, "
        "arXiv 2602.05360 (D-KNN)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k is not None and self.k < 1:
            raise ConfigError(f"d_knn: k = {self.k} must be at least 1")
        if not 0 < self.variance < 1:
            raise ConfigError(f"d_knn: variance = {self.variance} must lie between 0 and 1")
        if self.max_bank < 1 + (self.k or 1):
            raise ConfigError(f"d_knn: max_bank = {self.max_bank} must be more than k = {self.k or 1}")

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        bank = sampled(batches, lambda batch: unit_norm(self.rows(batch)), self.max_bank, generator)
        if (self.k or 1) >= len(bank):
            raise SignalError(f"d_knn: k = {self.k or 1} must be less than the {len(bank)} images to fit on")
        mean, values, vectors = principal_axes(bank, bank.shape[1])
        basis = vectors[:, : holding(values, self.variance)]
        inside, outside = parts(bank, mean, basis)
        state = {"mean": mean, "basis": basis, "inside": inside, "outside": outside}
        if held_out is None:
            distances = self._distances(state, bank, own=True)
        else:
            distances = torch.cat([self._distances(state, unit_norm(self.rows(batch, len(mean)))) for batch in held_out])
        if len(distances) < 2:
            raise SignalError(f"d_knn has {len(distances)} held-out images and needs at least 2")
        return {**state, "centre": distances.mean(dim=0), "spread": distances.std(dim=0).clamp_min(NARROWEST)}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        distances = self._distances(state, unit_norm(self.rows(signals, len(state["mean"]))))
        return ((distances - state["centre"]) / state["spread"]).sum(dim=1)

    def _distances(self, state: State, rows: Float64[Tensor, "n d"], *, own: bool = False) -> Float64[Tensor, "n 2"]:
        """Inside and outside the subspace; ``own``: the rows are the bank, and none is its own neighbour."""
        banks, k = (state["inside"], state["outside"]), self.k or default_k(len(state["inside"]))
        both = zip(parts(rows, state["mean"], state["basis"]), banks, strict=True)
        return torch.stack([kth_distance(own_part, bank, k, leave_one_out=own).double() for own_part, bank in both], dim=1)


def parts(
    rows: Float64[Tensor, "n d"], mean: Float64[Tensor, " d"], basis: Float64[Tensor, "d p"]
) -> tuple[Float32[Tensor, "n p"], Float32[Tensor, "n d"]]:
    """Coordinates inside the subspace about the mean, and what is left outside it."""
    centred = rows - mean
    inside = centred @ basis
    return inside.float(), (centred - inside @ basis.T).float()
