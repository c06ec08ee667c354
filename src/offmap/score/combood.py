"""Nearest neighbours and Mahalanobis distance together."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.linalg import unit_norm
from offmap.core.neighbours import kth_distance
from offmap.core.types import Signals
from offmap.score._bank import sampled
from offmap.score._gaussian import GaussianDetector, nearest_class
from offmap.score._held_out import Share
from offmap.score.knn import default_k

SMALLEST = 1e-12
"""Least squared distance whose logarithm is taken."""

NARROWEST = 1e-3
"""Least deviation of a log distance; reached only where held-out images are copies of each other."""


@dataclass(frozen=True, kw_only=True)
class CombOOD(GaussianDetector):
    """CombOOD, ``z(log d_knn) + z(log d_maha)`` of ``h / |h|``, each standardised on held-out in-distribution images.

    ``d_knn`` is the distance to the k-th neighbour, ``d_maha`` the squared Mahalanobis distance to the nearest class (to the mean
    without labels). The first assumes no shape but needs many images, the second needs few but assumes a Gaussian. The number
    is about 0 for a typical unseen image. That it is a sum of standardised logarithms is the project's reading.

    Fitting costs ``N D^2``, scoring ``M D + D^2 / 2`` an image for a bank of M rows; the state is ``M D + D^2 + (K + 1) D`` numbers.
    Without ``held_out``, every fourth image is kept apart and takes no part in the bank and the Gaussian.

    Fails when one of the two is blind to the shift: it adds nothing but its own noise to the other.

    Args:
        layer: name of the layer; ``last`` is the encoder's deepest.
        shrinkage: ``ledoit_wolf`` or ``oas``; both keep the covariance regular when there are fewer images than dimensions.
        k: which neighbour; not given: 5 % of the bank, at least 1 and at most 50.
        max_bank: rows kept; a uniform sample of more.
    """

    k: int | None = None
    max_bank: int = 50_000

    reference: ClassVar[str] = (
        "Rajasekaran et al., COMBOOD: A Semiparametric Approach for Detecting Out-of-distribution Data for Image Classification, "
        "SDM 2024, arXiv 2602.07042"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k is not None and self.k < 1:
            raise ConfigError(f"combood: k = {self.k} must be at least 1")
        if self.max_bank < (self.k or 1):
            raise ConfigError(f"combood: max_bank = {self.max_bank} must be at least k = {self.k or 1}")

    def vectors(self, signals: Signals, width: int | None = None) -> Float64[Tensor, "n d"]:
        return unit_norm(self.rows(signals, width))

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        fit = Share(batches, held=False) if held_out is None else batches
        unseen = Share(batches, held=True) if held_out is None else held_out
        state = {**super().learn(fit, None, generator), "bank": sampled(fit, self.vectors, self.max_bank, generator).float()}
        if (self.k or 1) > len(state["bank"]):
            raise SignalError(f"combood: k = {self.k} is more than the {len(state['bank'])} images to fit on")
        parts = [self._logs(state, batch) for batch in unseen]
        if sum(map(len, parts)) < 2:
            raise SignalError(
                f"combood has {sum(map(len, parts))} held-out images and needs at least 2: "
                "give more in held_out, or none and at least 8 images to fit on"
            )
        logs = torch.cat(parts)
        return {**state, "centre": logs.mean(dim=0), "spread": logs.std(dim=0).clamp_min(NARROWEST)}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        return ((self._logs(state, signals) - state["centre"]) / state["spread"]).sum(dim=1)

    def _logs(self, state: State, signals: Signals) -> Float64[Tensor, "n 2"]:
        rows, bank = self.vectors(signals, len(state["mean"])), state["bank"]
        near = kth_distance(rows.float(), bank, self.k or default_k(len(bank))).double().square()
        return torch.stack([0.5 * near.clamp_min(SMALLEST).log(), nearest_class(state, rows).clamp_min(SMALLEST).log()], dim=1)
