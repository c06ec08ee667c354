"""What the Mahalanobis family shares: class means and one covariance, estimated from a stream of batches."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar, get_args

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from offmap.core.detector import State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.linalg import Shrinkage, Whitener, nearest_centre, shrunk
from offmap.core.moments import ClassMoments, Moments, quartic
from offmap.core.types import Signals
from offmap.score._layer import LayerDetector, labels_of

Labelled = tuple[Float64[Tensor, "n d"], Int64[Tensor, " n"]]


@dataclass(frozen=True, kw_only=True)
class GaussianDetector(LayerDetector):
    """Class means and one shrunk covariance; a single Gaussian where there are no labels.

    Args:
        shrinkage: how the covariance is drawn towards a multiple of the identity.
    """

    shrinkage: Shrinkage = "ledoit_wolf"

    passes: ClassVar[str] = "1F"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shrinkage(self.shrinkage, self.method())

    @property
    def fit_uses(self) -> frozenset[str]:
        return frozenset({"label"})

    def vectors(self, signals: Signals, width: int | None = None) -> Float64[Tensor, "n d"]:
        """What the Gaussian is put on."""
        return self.rows(signals, width)

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        return gaussian_state(batches, self.vectors, kind=self.shrinkage, who=self.method())

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        return nearest_class(state, self.vectors(signals, len(state["mean"])))


Gaussian = tuple[Float64[Tensor, " d"], Float64[Tensor, "k d"], Float64[Tensor, "d d"]]
"""Mean of all rows, mean of each class, covariance about them."""

Vectors = Callable[[Signals], Tensor]
"""Takes the rows out of a batch."""


def gaussian_state(batches: Iterable[Signals], vectors: Vectors, *, kind: Shrinkage, who: str) -> State:
    """Tensors ``mean``, ``factor`` and ``centres`` (whitened class means; one where the batches have no labels).

    Raises:
        SignalError: the rows do not vary, or some batches have labels and others do not.
    """
    gaussian = class_gaussian if "label" in next(iter(batches)) else one_gaussian
    mean, centres, covariance = gaussian(batches, vectors, kind=kind, who=who)
    whitener = Whitener.of(mean, covariance)
    return {"mean": mean, "factor": whitener.factor, "centres": whitener.whiten(centres)}


def nearest_class(state: State, rows: Float[Tensor, "n d"]) -> Float64[Tensor, " n"]:
    """Squared Mahalanobis distance to the nearest class of a ``gaussian_state``, >= 0."""
    return nearest_centre(Whitener(state["mean"], state["factor"]).whiten(rows), state["centres"])[0]


def each_class(state: State, rows: Float[Tensor, "n d"]) -> Float64[Tensor, "n k"]:
    """Squared Mahalanobis distance to every class of a ``gaussian_state``, >= 0, by products about the mean of the classes."""
    centre = state["centres"].mean(dim=0)
    whitened, centres = Whitener(state["mean"], state["factor"]).whiten(rows) - centre, state["centres"] - centre
    lengths = whitened.square().sum(dim=1, keepdim=True) + centres.square().sum(dim=1)
    return torch.addmm(lengths, whitened, centres.T, alpha=-2).clamp_min(0)


def check_shrinkage(shrinkage: str, who: str) -> None:
    """Raises:
    ConfigError: there is no such shrinkage.
    """
    if shrinkage not in get_args(Shrinkage):
        raise ConfigError(f"{who}: shrinkage = {shrinkage!r} must be one of {', '.join(get_args(Shrinkage))}")


def one_gaussian(batches: Iterable[Signals], vectors: Vectors, *, kind: Shrinkage, who: str) -> Gaussian:
    """Mean and covariance of rows without labels, in one pass.

    Raises:
        SignalError: the rows do not vary, or a batch has labels although the first has none.
    """
    total = reduce(Moments.merge, (Moments.of(vectors(b)) for b in _uniform(batches, who, labelled=False)))
    level = float(total.mean.square().sum())
    return total.mean, total.mean[None], shrunk(total.scatter, total.quartic, count=total.count, level=level, kind=kind)


def class_gaussian(batches: Iterable[Signals], vectors: Vectors, *, kind: Shrinkage, who: str) -> Gaussian:
    """Class means and the covariance tied over the classes; Ledoit-Wolf reads the batches a second time.

    Raises:
        SignalError: the rows do not vary within their classes, or a batch has no labels although the first has.
    """
    sums = class_moments(batches, vectors, who=who)
    fourth = sums.within.new_zeros(())
    if kind == "ledoit_wolf":
        fourth = torch.stack([quartic(sums.residuals(rows, labels)) for rows, labels in _labelled(batches, vectors, who)]).sum()
    level = float(sums.mean.square().sum())
    covariance = shrunk(sums.within, fourth, count=sums.count, centres=len(sums.labels), level=level, kind=kind)
    return sums.mean, sums.means, covariance


def class_moments(batches: Iterable[Signals], vectors: Vectors, *, who: str) -> ClassMoments:
    """Sums of labelled batches.

    Raises:
        SignalError: a batch has no labels.
    """
    return reduce(ClassMoments.merge, (ClassMoments.of(rows, labels) for rows, labels in _labelled(batches, vectors, who)))


def _labelled(batches: Iterable[Signals], vectors: Vectors, who: str) -> Iterator[Labelled]:
    for batch in _uniform(batches, who, labelled=True):
        labels = labels_of(batch, who)
        if labels is not None:
            rows = vectors(batch)
            yield rows, labels.to(rows.device)


def _uniform(batches: Iterable[Signals], who: str, *, labelled: bool) -> Iterator[Signals]:
    for batch in batches:
        if ("label" in batch) != labelled:
            raise SignalError(f"{who}: some batches have the signal label and others do not; give it in all of them or in none")
        yield batch
