"""Mahalanobis distance of unit vectors in the dimensions that move most under a proxy shift."""

from dataclasses import dataclass
from typing import ClassVar

from offmap.core.linalg import Shrinkage
from offmap.score._moving import MovingDetector
from offmap.score.mahalanobis_pp import MahalanobisPP


@dataclass(frozen=True, kw_only=True)
class MFSMahalanobisPP(MovingDetector):
    """MFS with Mahalanobis++: the kept dimensions, divided by their length, then the squared distance to the nearest class mean.

    Kept are the dimensions whose distribution moves most, by 1-D Wasserstein distance in the unit of the feature, when each fit
    image x is replaced by ``a x + (1 - a) proxy``, a drawn from {0.25, 0.5, 0.75} (signal ``proxy_features.<layer>``). The original
    mixes with natural photographs and tunes ``keep`` on out-of-distribution data; here proxies are drawn or damaged images, and
    ``keep`` is for in-distribution images and proxies to choose, never for out-of-distribution ones.

    Fitting costs a second pass of the encoder over the mixed images, a sort of up to 2000 images, and ``N d^2`` for d kept dimensions;
    scoring costs ``d^2``; the state is ``d^2`` numbers.

    Fails when the real shift moves other dimensions than the proxies do, and when it multiplies all kept ones alike: of few
    dimensions the length is much of what there is to see.

    Args:
        layer: name of the layer; ``last`` is the encoder's deepest.
        keep: share of the dimensions, in (0, 1].
        least: dimensions kept at least, or all of a narrower layer; 20 is what 1 % was in the networks of 2048 that it was tried on.
        shrinkage: ``ledoit_wolf`` or ``oas``; both keep the covariance regular when there are fewer images than dimensions.
    """

    shrinkage: Shrinkage = "ledoit_wolf"

    reference: ClassVar[str] = (
        "MFS, selection of features by their movement under a proxy shift, in the code of OpenMIBOOD, 2026; "
        "Mueller & Hein, ICML 2025, arXiv 2505.18032"
    )

    def base(self) -> MahalanobisPP:
        return MahalanobisPP(layer=self.layer, shrinkage=self.shrinkage)
