"""Mahalanobis distance to the nearest class, less the spread of the distances to all classes."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.types import Signals
from offmap.score._gaussian import GaussianDetector, each_class


@dataclass(frozen=True, kw_only=True)
class MahaVar(GaussianDetector):
    """MahaVar: ``min_c M_c(h) - lambda Var_c M_c(h)``, the variance over classes divided by K.

    A usual image is near one class and far from the others, so its squared distances vary much over classes; an odd one is
    as far from all. The number may be negative; only its order means something.

    ``lambda`` is ``weight`` times the mean of ``min_c M_c`` over the mean of ``Var_c M_c`` in the fit part, so that at a weight of
    1 the score is 0 on average there. This scale is the project's own; that the variance lowers the score is the paper's.

    Needs labels of two classes or more. Fitting costs ``N D^2`` and one further pass, scoring ``D^2 / 2 + K D`` an image; the state
    is ``D^2 + (K + 1) D + 1`` numbers.

    Fails where classes overlap, far out along the directions that tell them apart: the variance grows as the square of the
    distance as well, so with a large weight a far image there scores below a usual one.

    Args:
        layer: name of the layer; ``last`` is the encoder's deepest.
        shrinkage: ``ledoit_wolf`` or ``oas``; both keep the covariance regular when there are fewer images than dimensions.
        weight: of the variance, >= 0; 0 is ``mahalanobis``.
    """

    weight: float = 0.5

    reference: ClassVar[str] = (
        "Kim & Yoon, MahaVar: OOD Detection via Class-wise Mahalanobis Distance Variance under Neural Collapse, 2026, arXiv 2605.14413"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.weight >= 0:
            raise ConfigError(f"mahavar: weight = {self.weight} must be >= 0")

    @property
    def fit_needs(self) -> frozenset[str]:
        return self.needs | {"label"}

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        state = super().learn(batches, held_out, generator)
        if len(state["centres"]) < 2:
            raise SignalError("mahavar needs labels of two classes or more, the batches have one; mahalanobis works without")
        sums = torch.stack([torch.stack(_parts(state, self.vectors(batch))).sum(dim=1) for batch in batches]).sum(dim=0)
        if not float(sums[1]) > 0:
            raise SignalError("mahavar: all classes have one mean, so the distances to them do not vary; use mahalanobis")
        return {**state, "lambda": self.weight * sums[0] / sums[1]}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        least, variance = _parts(state, self.vectors(signals, len(state["mean"])))
        return least - state["lambda"] * variance


def _parts(state: State, rows: Float64[Tensor, "n d"]) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]:
    """Least squared distance, and variance of the squared distances over classes."""
    distances = each_class(state, rows)
    return distances.min(dim=1).values, distances.var(dim=1, unbiased=False)
