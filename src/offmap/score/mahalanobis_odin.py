"""Squared Mahalanobis distance of the features after a small step of the input towards the predicted class."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.linalg import Shrinkage
from offmap.core.signals import named
from offmap.core.types import Signals
from offmap.score._gaussian import check_shrinkage, gaussian_state, nearest_class
from offmap.score._layer import rows_of
from offmap.score._step import check_step


@dataclass(frozen=True, kw_only=True)
class MahalanobisODIN(Detector):
    """Mahalanobis with input noise of ODIN: ``min_c (h' - mu_c)^T Sigma^-1 (h' - mu_c)``, ``h' = h(x')``.

    ``h`` are the penultimate features and ``x'`` is the input after ODIN's step, along the gradient of the classifier's own top
    probability. Lee et al. step along the gradient of the Mahalanobis distance instead, which needs the fitted Gaussian within the
    network's backward pass; this is their idea with another direction, not their method. Fitted on moved images as well.
    About D for an in-distribution image if features were Gaussian, no upper end; one mean for each class where fit batches carry
    ``label``, otherwise one for all.

    Fitting costs ``N D^2`` and ``D^3 / 3``, scoring ``D^2 / 2 + K D`` and two forward passes and one backward pass an image, shared
    with ``odin`` of equal ``epsilon`` and ``temperature``; the state is ``D^2 + (K + 1) D`` numbers.

    Fails as ``mahalanobis`` does, when a class is not one blob; and the step helps only where it moves features of
    in-distribution images nearer to their class than those of others, which is not checked. With ``epsilon`` of 0 it is ``mahalanobis``
    of the layer ``penultimate``.

    Args:
        epsilon: length of the step for each pixel value in [0, 1], 0 or more; see ``odin``.
        temperature: T of the step, greater than 0.
        shrinkage: ``ledoit_wolf`` or ``oas``.
    """

    epsilon: float = 0.0014
    temperature: float = 1000.0
    shrinkage: Shrinkage = "ledoit_wolf"

    passes: ClassVar[str] = "2F+1B"
    reference: ClassVar[str] = (
        "after Lee et al., A Simple Unified Framework for Detecting Out-of-Distribution Samples, NeurIPS 2018, arXiv 1807.03888, "
        "with the step of Liang et al., ODIN, ICLR 2018, arXiv 1706.02690"
    )

    def __post_init__(self) -> None:
        check_step(self.epsilon, self.temperature, self.method())
        check_shrinkage(self.shrinkage, self.method())

    @property
    def signal(self) -> str:
        """Name of the signal that it reads."""
        return named("odin.features", {"epsilon": self.epsilon, "temperature": self.temperature})

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.signal})

    @property
    def fit_uses(self) -> frozenset[str]:
        return frozenset({"label"})

    def vectors(self, signals: Signals, width: int | None = None) -> Float64[Tensor, "n d"]:
        """Features of the moved images."""
        return rows_of(signals, self.signal, self.method(), width)

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        return gaussian_state(batches, self.vectors, kind=self.shrinkage, who=self.method())

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        return nearest_class(state, self.vectors(signals, len(state["mean"])))
