"""Mahalanobis distance to the nearest class, minus the distance to all data."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.detector import State
from offmap.core.errors import SignalError
from offmap.core.linalg import Whitener, cholesky, shrunk
from offmap.core.moments import Moments
from offmap.core.types import Signals
from offmap.score._gaussian import GaussianDetector


@dataclass(frozen=True, kw_only=True)
class RelativeMahalanobis(GaussianDetector):
    """Relative Mahalanobis distance, ``min_c M_c(h) - M_0(h)``.

    ``M_c`` is the squared distance to class c under the covariance within the classes, ``M_0`` the squared distance to
    the mean of all data under the total covariance. What is odd for every class and for the whole alike cancels; what
    remains is oddness in the directions that tell classes apart. The number may be negative; only its order means something.

    Needs labels of two classes or more. Fitting costs ``2 N D^2`` (twice through the batches for Ledoit-Wolf), scoring
    ``D^2 + K D`` an image; the state is ``2 D^2 + (K + 1) D`` numbers.

    Fails when the shift is the same for all classes, such as another scanner: it cancels, which plain ``mahalanobis`` sees.

    Args:
        layer: name of the layer; ``last`` is the encoder's deepest.
        shrinkage: ``ledoit_wolf`` or ``oas``; both keep the covariances regular when there are fewer images than dimensions.
    """

    reference: ClassVar[str] = (
        "Ren et al., A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection, 2021, arXiv 2106.09022, eq. 4"
    )

    @property
    def fit_needs(self) -> frozenset[str]:
        return self.needs | {"label"}

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        state = super().learn(batches, held_out, generator)
        if len(state["centres"]) < 2:
            raise SignalError(f"{self.method()} needs labels of two classes or more, the batches have one; mahalanobis works without")
        total = reduce(Moments.merge, (Moments.of(self.vectors(b)) for b in batches))
        return {**state, "background": cholesky(shrunk(total.scatter, total.quartic, count=total.count, kind=self.shrinkage))}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        rows = self.vectors(signals, len(state["mean"]))
        return super().raw_score(state, signals) - Whitener(state["mean"], state["background"]).squared(rows)
