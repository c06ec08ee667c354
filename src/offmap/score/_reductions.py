"""How the standardised log distances of several layers become one score."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.score.multilayer_fisher import mean_excess, own_surprise, surprise

Reduction = Literal["logsumexp", "mean", "max", "mean_deep", "mean_knn", "fisher"]


@dataclass(frozen=True, eq=False)
class Parts:
    """What a reduction may combine; each column standardised on held-out in-distribution images.

    Args:
        layers: log Mahalanobis distance of each layer, shallow to deep.
        neighbour: log distance to the k-th nearest neighbour in the deepest layer; zeros for a reduction that does not read it.
        tails: ``-ln p`` of each layer, p its place among the held-out images; only for the reduction that reads it.
    """

    layers: Float64[Tensor, "n l"]
    neighbour: Float64[Tensor, " n"]
    tails: Float64[Tensor, "n l"] | None = None


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


def _fisher(parts: Parts) -> Tensor:
    """Fisher's ``-sum ln p``; standardised and calibrated afterwards as any other number, so that dependence does no harm."""
    if parts.tails is None:
        raise ConfigError("the reduction fisher needs the tails of each layer: make them with offmap.score._reductions.Tails")
    return parts.tails.sum(dim=1)


REDUCTIONS: Mapping[Reduction, tuple[Term, ...]] = MappingProxyType(
    {
        "logsumexp": (_logsumexp,),
        "mean": (_mean,),
        "max": (_max,),
        "mean_deep": (_mean, _deep),
        "mean_knn": (_mean, _neighbour),
        "fisher": (_fisher,),
    }
)
"""Terms of each reduction; each term is standardised again on the held-out images, and the score is their sum."""

NEIGHBOUR: frozenset[Reduction] = frozenset({"mean_knn"})
"""Reductions that read the distance to the nearest neighbours."""


TAILS: frozenset[Reduction] = frozenset({"fisher"})
"""Reductions that read ``-ln p`` of each layer."""


@dataclass(frozen=True, eq=False)
class Tails:
    """``-ln p`` of standardised log distances, by their place among held-out images; beyond the largest as in ``multilayer_fisher``.

    Args:
        held: columns of the held-out images, each sorted.
        excess: mean excess of the upper tenth of each.
    """

    held: Float64[Tensor, "m l"]
    excess: Float64[Tensor, " l"]

    @classmethod
    def of(cls, held_out: Float64[Tensor, "m l"]) -> "Tails":
        """From the held-out images."""
        held = held_out.sort(dim=0).values
        return cls(held, mean_excess(held))

    def of_unseen(self, layers: Float64[Tensor, "n l"]) -> Float64[Tensor, "n l"]:
        """``-ln p`` of other images."""
        return surprise(self.held, self.excess, layers)

    def of_held(self, layers: Float64[Tensor, "m l"]) -> Float64[Tensor, "m l"]:
        """``-ln p`` of the held-out images, each counted among the others."""
        return own_surprise(self.held, layers)


def terms(reduction: Reduction, parts: Parts) -> Float64[Tensor, "n t"]:
    """The terms of a reduction, one column each."""
    return torch.stack([term(parts) for term in REDUCTIONS[reduction]], dim=1)
