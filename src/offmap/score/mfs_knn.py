"""Distance to the k-th nearest image in the dimensions that move most under a proxy shift."""

from dataclasses import dataclass
from typing import ClassVar

from offmap.score._moving import MovingDetector
from offmap.score.knn import KNN


@dataclass(frozen=True, kw_only=True)
class MFSKNN(MovingDetector):
    """MFS with k-NN: the kept dimensions, divided by their length, then the distance to the k-th in-distribution neighbour, in [0, 2].

    Kept are the dimensions whose distribution moves most, by 1-D Wasserstein distance in the unit of the feature, when each fit
    image x is replaced by ``a x + (1 - a) proxy``, a drawn from {0.25, 0.5, 0.75} (signal ``proxy_features.<layer>``). The original
    mixes with natural photographs and tunes ``keep`` on out-of-distribution data; here proxies are drawn or damaged images, and
    ``keep`` is for in-distribution images and proxies to choose, never for out-of-distribution ones.

    Fitting costs a second pass of the encoder over the mixed images and a sort of up to 2000 images; scoring costs ``M d`` for M rows of
    d kept dimensions; the state is ``M d`` numbers in float32.

    Fails when the real shift moves other dimensions than the proxies do: what was dropped is not looked at. As with ``knn``,
    images of a rare kind look odd.

    Args:
        layer: name of the layer; ``last`` is the encoder's deepest.
        keep: share of the dimensions, in (0, 1].
        least: dimensions kept at least, or all of a narrower layer; 20 is what 1 % was in the networks of 2048 that it was tried on.
        k: which neighbour; not given: 5 % of the bank, at least 1 and at most 50.
        max_bank: rows kept; a uniform sample of more.
    """

    k: int | None = None
    max_bank: int = 50_000

    reference: ClassVar[str] = (
        "MFS, selection of features by their movement under a proxy shift, in the code of OpenMIBOOD, 2026; "
        "Sun et al., ICML 2022, arXiv 2204.06507"
    )

    def base(self) -> KNN:
        return KNN(layer=self.layer, k=self.k, max_bank=self.max_bank)
