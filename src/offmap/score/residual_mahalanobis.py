"""Mahalanobis distance of what a linear autoencoder leaves over."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.detector import State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.linalg import Shrinkage, Whitener, principal, shrunk
from offmap.core.moments import quartic
from offmap.core.types import Signals
from offmap.score._gaussian import check_shrinkage
from offmap.score._layer import LayerDetector
from offmap.score._subspace import holding, total_moments


@dataclass(frozen=True, kw_only=True)
class ResidualMahalanobis(LayerDetector):
    """Squared Mahalanobis distance ``r^T Sigma_r^-1 r`` of the residual ``r = h - A(h)`` of the best linear autoencoder A.

    A projects on the first d principal components about the mean, which is the linear autoencoder of least error. The idea is
    that of MaRS, which trains a network for A; its width and training were not public when this was written, so this is
    the project's linear form, and is not called MaRS. Within the residual, directions count by their own variance, where
    ``residual`` counts all alike. The distance is in squared standard deviations, about D - d for a typical image.

    Fitting costs ``N D^2 + D^3`` (twice through the batches for Ledoit-Wolf), scoring ``D (D - d)`` an image; the state is at most
    ``2 D^2 + D`` numbers. No labels.

    Fails when the shift lies inside the subspace, and where usual images lie on a curved surface, which takes many components
    to hold.

    Args:
        layer: name of the layer; ``last`` is the encoder's deepest.
        variance: share of the trace that the autoencoder holds, in (0, 1); d is never more than min(N, D) - 1.
        shrinkage: ``ledoit_wolf`` or ``oas``, of the residual's covariance.
    """

    variance: float = 0.9
    shrinkage: Shrinkage = "ledoit_wolf"

    reference: ClassVar[str] = (
        "Linear form of MaRS: Di Salvo et al., MICCAI 2026, arXiv 2606.22649 (Mahalanobis distance of an autoencoder's residual)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shrinkage(self.shrinkage, self.method())
        if not 0 < self.variance < 1:
            raise ConfigError(f"residual_mahalanobis: variance = {self.variance} must lie between 0 and 1")

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        moments = total_moments(batches, self.rows)
        if moments.count < 2:
            raise SignalError("residual_mahalanobis: one image leaves no residual: give at least two to fit on")
        values, vectors = principal(moments.scatter)
        rest = vectors[:, min(holding(values, self.variance), moments.count - 1, len(values) - 1) :]
        fourth = moments.quartic.new_zeros(())
        if self.shrinkage == "ledoit_wolf":
            fourth = torch.stack([quartic((self.rows(batch) - moments.mean) @ rest) for batch in batches]).sum()
        level = float(moments.mean.square().sum())
        covariance = shrunk(rest.T @ moments.scatter @ rest, fourth, count=moments.count, level=level, kind=self.shrinkage)
        factor = Whitener.of(covariance.new_zeros(len(covariance)), covariance).factor
        return {"mean": moments.mean, "rest": rest, "factor": factor}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        residual = (self.rows(signals, len(state["mean"])) - state["mean"]) @ state["rest"]
        return Whitener(residual.new_zeros(residual.shape[1]), state["factor"]).squared(residual)
