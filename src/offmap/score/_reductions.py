"""How the standardised log distances of several layers become one score."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

Reduction = Literal["logsumexp", "mean", "max", "mean_deep", "mean_knn"]


@dataclass(frozen=True, eq=False)
class Parts:
    """What a reduction may combine; each column standardised on held-out in-distribution images.

    Args:
        layers: log Mahalanobis distance of each layer, shallow to deep.
        neighbour: log distance to the k-th nearest neighbour in the deepest layer; zeros for a reduction that does not read it.
    """

    layers: Float64[Tensor, "n l"]
    neighbour: Float64[Tensor, " n"]


Term = Callable[[Parts], Tensor]


def _mean(parts: Parts) -> Tensor:
    return parts.layers.mean(dim=1)


def _logsumexp(parts: Parts) -> Tensor:
    """Between the mean and the maximum: one odd layer is enough, several odd ones are more."""
    return torch.logsumexp(parts.layers, dim=1)


def _max(parts: Parts) -> Tensor:
    return parts.layers.amax(dim=1)


def _deep(parts: Parts) -> Tensor:
    return parts.layers[:, -1]


def _neighbour(parts: Parts) -> Tensor:
    return parts.neighbour


REDUCTIONS: Mapping[Reduction, tuple[Term, ...]] = MappingProxyType(
    {"logsumexp": (_logsumexp,), "mean": (_mean,), "max": (_max,), "mean_deep": (_mean, _deep), "mean_knn": (_mean, _neighbour)}
)
"""Terms of each reduction; each term is standardised again on the held-out images, and the score is their sum."""

NEIGHBOUR: frozenset[Reduction] = frozenset({"mean_knn"})
"""Reductions that read the distance to the nearest neighbours."""


def terms(reduction: Reduction, parts: Parts) -> Float64[Tensor, "n t"]:
    """The terms of a reduction, one column each."""
    return torch.stack([term(parts) for term in REDUCTIONS[reduction]], dim=1)
