"""Closeness of a feature to the weights of its class."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.errors import ConfigError
from offmap.core.types import Signals
from offmap.score._head import HEAD, PENULTIMATE, head_of, mean_of
from offmap.score._layer import CACHED, distances, row_products, rows_as_given
from offmap.score._targets import predicted


@dataclass(frozen=True, kw_only=True)
class NCI(Detector):
    """Neural-collapse score ``-<h - m, w_y> / |h - m| - alpha |h|_1``, with y the predicted class and m the mean feature.

    At the end of training, centred features of a class gather around the direction of its weights; the first part is the
    projection of the weights onto the centred feature's direction, the second takes features near the origin for odd.

    Fitting costs ``N D``, scoring D an image; the state is ``(K + 1) D`` numbers.

    Fails when classes have weights of different length: these are not normalised, so images predicted as a class with
    long weights look less odd. Features much longer than those of the fit part look less odd, by ``alpha``.

    Args:
        alpha: weight of the L1 norm, >= 0; 0 leaves it out. The paper tries 1e-4 to 1e-1.
    """

    alpha: float = 1e-4

    reference: ClassVar[str] = "Liu & Qin, Detecting Out-of-Distribution through the Lens of Neural Collapse, CVPR 2025, arXiv 2311.01479"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < float("inf"):
            raise ConfigError(f"nci: alpha = {self.alpha} must be at least 0")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({PENULTIMATE, "logits"})

    @property
    def fit_needs(self) -> frozenset[str]:
        return self.needs | HEAD

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        mean = mean_of(batches, "nci")
        return {"mean": mean, "weight": head_of(next(iter(batches)), len(mean), "nci")[0].to(mean)}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        rows = rows_as_given(signals, PENULTIMATE, "nci", len(state["mean"]))
        mean, weight = state["mean"].to(rows), state["weight"].to(rows)
        which = predicted(signals, "nci", len(weight))[1]
        along = torch.cat(
            [row_products(part - mean, weight, index) for part, index in zip(rows.split(CACHED), which.split(CACHED), strict=True)]
        )
        length = distances(rows, mean).clamp_min(1e-12)
        sums: Tensor = torch.linalg.vector_norm(rows, ord=1, dim=1)
        return -along / length - self.alpha * sums
