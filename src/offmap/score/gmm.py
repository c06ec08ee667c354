"""A full Gaussian for each class: negative log density of the mixture."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import log, pi
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import State
from offmap.core.errors import ConfigError
from offmap.core.linalg import Whitener, cholesky
from offmap.core.moments import Moments
from offmap.core.types import Signals
from offmap.score._gaussian import GaussianDetector, class_gaussian, one_gaussian
from offmap.score._layer import labels_of


@dataclass(frozen=True, kw_only=True)
class GMM(GaussianDetector):
    """Gaussian mixture with one full covariance for each class, ``-log sum_c pi_c N(h | mu_c, S_c)``.

    ``S_c = (1 - a_c) C_c + a_c T``: the covariance ``C_c`` of the class, drawn towards the shrunk covariance T tied over all
    classes. ``a_c`` is ``tied``, or ``(D + 1) / (D + N_c)`` where none is given, so that a class with one image has T and one
    with many times D images its own. This weight is the project's own. Without labels it is a single Gaussian, whose order is
    that of ``mahalanobis``.

    The number is a negative log density in nats, in units of the features; it may be negative, and only its order means something.

    Fitting costs ``N D^2 + K D^3``, scoring ``K D^2 / 2`` an image; the state is ``K (D^2 + D + 1)`` numbers: with many classes of
    wide features use ``mahalanobis``, which has one covariance.

    Fails with classes of few images in many dimensions, whose own covariance is then hardly used, and where a class is wide: an odd
    image inside it is likely.

    Args:
        layer: name of the layer; ``last`` is the encoder's deepest.
        shrinkage: ``ledoit_wolf`` or ``oas``, for the tied covariance.
        tied: weight of the tied covariance, in (0, 1]; not given: by the size of the class.
    """

    tied: float | None = None

    reference: ClassVar[str] = (
        "Gaussian discriminant analysis on features; class covariances drawn towards the tied one as in Friedman, Regularized "
        "Discriminant Analysis, J. Am. Stat. Assoc. 84 (1989), eq. 15"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tied is not None and not 0 < self.tied <= 1:
            raise ConfigError(f"gmm: tied = {self.tied} must lie in (0, 1]")

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        labelled = "label" in next(iter(batches))
        gaussian = class_gaussian if labelled else one_gaussian
        mean, _, tied = gaussian(batches, self.vectors, kind=self.shrinkage, who=self.method())
        sums = self._sums(batches) if labelled else {0: Moments(1, mean, torch.zeros_like(tied), mean, mean.sum())}
        parts = [sums[label] for label in sorted(sums)]
        counts = torch.tensor([part.count for part in parts], dtype=torch.float64, device=mean.device)
        return {
            "means": torch.stack([part.mean for part in parts]),
            "factors": torch.stack([cholesky(self._covariance(part, tied)) for part in parts]),
            "shares": counts / counts.sum(),
        }

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        rows = self.vectors(signals, state["means"].shape[1])
        terms = [
            share.log() - 0.5 * Whitener(mean, factor).squared(rows) - factor.diagonal().log().sum()
            for mean, factor, share in zip(state["means"], state["factors"], state["shares"], strict=True)
        ]
        return 0.5 * rows.shape[1] * log(2 * pi) - torch.logsumexp(torch.stack(terms, dim=1), dim=1)

    def _sums(self, batches: Iterable[Signals]) -> dict[int, Moments]:
        sums: dict[int, Moments] = {}
        for batch in batches:
            rows, labels = self.vectors(batch), labels_of(batch, self.method())
            if labels is not None:
                labels = labels.to(rows.device)
                for label in labels.unique().tolist():
                    part = Moments.of(rows[labels == label])
                    sums[label] = sums[label].merge(part) if label in sums else part
        return sums

    def _covariance(self, part: Moments, tied: Float64[Tensor, "d d"]) -> Float64[Tensor, "d d"]:
        width = len(tied)
        weight = self.tied or (width + 1) / (width + part.count)
        weight = 1.0 if part.count < 2 else weight
        return (1 - weight) * part.scatter / max(1, part.count - 1) + weight * tied
