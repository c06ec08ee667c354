"""How far the code of an image lies from those of in-distribution images."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.linalg import Shrinkage
from offmap.core.neighbours import Reservoir, kth_distance
from offmap.core.types import Signals
from offmap.score._gaussian import check_shrinkage, gaussian_state, nearest_class
from offmap.score._layer import rows_of

CODE = "latent.code"


@dataclass(frozen=True, kw_only=True)
class LatentDistance(Detector):
    """Distance of an autoencoder's code (the mean of a VAE's posterior) to the codes of in-distribution images, at least 0.

    With ``mahalanobis`` the squared distance to their mean in deviations (to the nearest class mean, where fit batches carry ``label``),
    about the length of the code for a usual image; with ``knn`` the Euclidean distance to the k-th nearest, in units of the code.

    Needs an autoencoder with a code. Scoring takes the encoder's half of one pass; Mahalanobis has a state of ``L^2 + 2 L`` numbers,
    neighbours one of ``max_bank L``.

    Fails where the encoder maps odd images among the usual ones, which nothing forbids: it was never asked to tell them apart.

    Args:
        distance: ``mahalanobis`` or ``knn``.
        shrinkage: of the covariance, ``ledoit_wolf`` or ``oas``.
        k: which neighbour.
        max_bank: codes kept; a uniform sample of more.
    """

    distance: Literal["mahalanobis", "knn"] = "mahalanobis"
    shrinkage: Shrinkage = "ledoit_wolf"
    k: int = 5
    max_bank: int = 50_000

    reference: ClassVar[str] = (
        "Denouden et al., Improving Reconstruction Autoencoder Out-of-Distribution Detection with Mahalanobis Distance, 2018, "
        "arXiv 1812.02765"
    )

    def __post_init__(self) -> None:
        if self.distance not in ("mahalanobis", "knn"):
            raise ConfigError(f"latent_distance: distance = {self.distance!r} must be mahalanobis or knn")
        check_shrinkage(self.shrinkage, "latent_distance")
        if not 1 <= self.k <= self.max_bank:
            raise ConfigError(f"latent_distance: k = {self.k} must lie between 1 and max_bank = {self.max_bank}")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({CODE})

    @property
    def fit_uses(self) -> frozenset[str]:
        return frozenset({"label"}) if self.distance == "mahalanobis" else frozenset()

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        if self.distance == "mahalanobis":
            return gaussian_state(batches, self._rows, kind=self.shrinkage, who="latent_distance")
        parts = (self._rows(batch).float() for batch in batches)
        first = next(parts)
        sample = reduce(lambda kept, rows: kept.add(rows, generator), parts, Reservoir.empty(self.max_bank, first).add(first, generator))
        if self.k > len(sample.rows):
            raise SignalError(f"latent_distance: k = {self.k} is more than the {len(sample.rows)} images to fit on")
        return {"bank": sample.rows}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        if self.distance == "mahalanobis":
            return nearest_class(state, self._rows(signals, len(state["mean"])))
        bank = state["bank"]
        return kth_distance(self._rows(signals, bank.shape[1]).float(), bank, self.k)

    def _rows(self, signals: Signals, width: int | None = None) -> Float64[Tensor, "n d"]:
        return rows_of(signals, CODE, "latent_distance", width)
