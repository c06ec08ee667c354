"""Mahalanobis distance of features whose length is scaled down in part."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from math import log, log1p
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.types import Signals
from offmap.score._gaussian import GaussianDetector, each_class, gaussian_state, nearest_class
from offmap.score._held_out import Share


@dataclass(frozen=True, kw_only=True)
class RadialMahalanobis(GaussianDetector):
    """Radially scaled Mahalanobis: squared distance of ``h / |h|^beta`` to the nearest class; ``beta`` 0 is ``mahalanobis``, 1 is
    ``mahalanobis_pp``.

    The number is a squared distance in standard deviations, 0 at a class mean. Where no ``beta`` is given, it is the one of
    ``candidates`` under which held-out in-distribution images are likeliest: the log density of h is that of the Gaussian
    mixture at ``h / |h|^beta`` plus the log determinant of the map, ``log(1 - beta) - beta D log |h|``. At ``beta = 1`` h has no
    density, so 1 is never chosen, only given. No out-of-distribution data is used. This criterion is the project's own; the
    paper chooses by spectrum and local dimension of the in-distribution features.

    Fitting costs ``N D^2`` for each candidate, scoring ``D^2 / 2 + K D`` an image; the state is ``D^2 + (K + 1) D + 1`` numbers.
    Without ``held_out``, every fourth image chooses ``beta``; the Gaussian is then fitted on all.

    Fails where likelihood and detection disagree: the likeliest density of the usual need not be the best at the unusual.

    Args:
        layer: name of the layer; ``last`` is the encoder's deepest.
        shrinkage: ``ledoit_wolf`` or ``oas``; both keep the covariance regular when there are fewer images than dimensions.
        beta: power of the length that is divided away, in [0, 2]; not given: chosen.
        candidates: values to choose from, each in [0, 1).
    """

    beta: float | None = None
    candidates: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 0.9)

    reference: ClassVar[str] = (
        "Janiak et al., Dissecting Mahalanobis: How Feature Geometry and Normalization Shape OOD Detection, 2025, arXiv 2510.15202 "
        "(h / |h|^beta); beta chosen as stated here"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta is not None and not 0 <= self.beta <= 2:
            raise ConfigError(f"radial_mahalanobis: beta = {self.beta} must lie between 0 and 2")
        if not self.candidates or not all(0 <= c < 1 for c in self.candidates):
            raise ConfigError(f"radial_mahalanobis: candidates = {list(self.candidates)} must be one or more numbers in [0, 1)")

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        beta = self._chosen(batches, held_out) if self.beta is None else self.beta
        return {**self._gaussian(batches, beta), "beta": torch.tensor(beta, dtype=torch.float64)}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        return nearest_class(state, scaled(self.rows(signals, len(state["mean"])), float(state["beta"])))

    def _gaussian(self, batches: Iterable[Signals], beta: float) -> State:
        return gaussian_state(batches, lambda batch: scaled(self.rows(batch), beta), kind=self.shrinkage, who=self.method())

    def _chosen(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None) -> float:
        fit = Share(batches, held=False) if held_out is None else batches
        unseen = Share(batches, held=True) if held_out is None else held_out
        if next(iter(unseen), None) is None:
            raise SignalError("radial_mahalanobis has no held-out image to choose beta on: give held_out, beta, or at least 8 images")
        return max(self.candidates, key=partial(self._likelihood, fit, unseen))

    def _likelihood(self, fit: Iterable[Signals], unseen: Iterable[Signals], beta: float) -> float:
        """Summed log density of the unseen features, up to a constant that is the same for every beta."""
        state = self._gaussian(fit, beta)
        width, volume = len(state["mean"]), float(state["factor"].diagonal().log().sum())
        total = 0.0
        for batch in unseen:
            rows = self.rows(batch, width)
            length = torch.linalg.vector_norm(rows, dim=1).clamp_min(1e-12)
            inside = torch.logsumexp(-0.5 * each_class(state, scaled(rows, beta)), dim=1) - volume - log(len(state["centres"]))
            total += float((inside + log1p(-beta) - beta * width * length.log()).sum())
        return total


def scaled(rows: Float64[Tensor, "n d"], beta: float) -> Float64[Tensor, "n d"]:
    """``h / |h|^beta``; a zero row stays zero."""
    length: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / length.clamp_min(1e-12) ** beta
