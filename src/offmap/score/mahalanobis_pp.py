"""Mahalanobis distance of features of length one."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float64
from torch import Tensor

from offmap.core.linalg import unit_norm
from offmap.core.types import Signals
from offmap.score._gaussian import GaussianDetector


@dataclass(frozen=True, kw_only=True)
class MahalanobisPP(GaussianDetector):
    """Mahalanobis++: squared Mahalanobis distance of ``h / |h|``, in fitting and scoring alike.

    The number means the same as in ``mahalanobis``: a squared distance in standard deviations, 0 at a class mean.
    Taking the length off helps on most backbones, since the length of a feature varies within the in-distribution data.

    Costs and state as ``mahalanobis``: fitting ``N D^2``, scoring ``D^2 / 2 + K D`` an image, ``D^2 + (K + 1) D`` numbers.

    Fails when the shift is in the length alone: ``h`` and ``10 h`` get one score.

    Args:
        layer: name of the layer; ``last`` is the encoder's deepest.
        shrinkage: ``ledoit_wolf`` or ``oas``; both keep the covariance regular when there are fewer images than dimensions.
    """

    reference: ClassVar[str] = (
        "Mueller & Hein, Mahalanobis++: Improving OOD Detection via Feature Normalization, ICML 2025, arXiv 2505.18032"
    )

    def vectors(self, signals: Signals, width: int | None = None) -> Float64[Tensor, "n d"]:
        return unit_norm(self.rows(signals, width))
