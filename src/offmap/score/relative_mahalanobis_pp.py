"""Relative Mahalanobis distance of features of length one."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float64
from torch import Tensor

from offmap.core.linalg import unit_norm
from offmap.core.types import Signals
from offmap.score.relative_mahalanobis import RelativeMahalanobis


@dataclass(frozen=True, kw_only=True)
class RelativeMahalanobisPP(RelativeMahalanobis):
    """Relative Mahalanobis++: ``min_c M_c(g) - M_0(g)`` with ``g = h / |h|``, in fitting and scoring alike.

    The number means the same as in ``relative_mahalanobis``; it may be negative, and only its order means something.

    Needs labels of two classes or more. Costs and state as there: fitting ``2 N D^2``, scoring ``D^2 + K D`` an image,
    ``2 D^2 + (K + 1) D`` numbers.

    Fails when the shift is the same for all classes, and when it is in the length alone: ``h`` and ``10 h`` get one score.

    Args:
        layer: name of the layer; ``last`` is the encoder's deepest.
        shrinkage: ``ledoit_wolf`` or ``oas``; both keep the covariances regular when there are fewer images than dimensions.
    """

    reference: ClassVar[str] = (
        "Ren et al., 2021, arXiv 2106.09022, eq. 4, on features normalised as in Mueller & Hein, Mahalanobis++, ICML 2025, arXiv 2505.18032"
    )

    def vectors(self, signals: Signals, width: int | None = None) -> Float64[Tensor, "n d"]:
        return unit_norm(self.rows(signals, width))
