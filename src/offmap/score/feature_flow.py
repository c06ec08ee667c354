"""Flow on features: how unlikely the features at each position are under a normalising flow."""

from dataclasses import dataclass
from typing import ClassVar

from offmap.score._one_map import TopOfMap


@dataclass(frozen=True, kw_only=True)
class FeatureFlow(TopOfMap):
    """Flow on features: mean over positions of ``-log p(x | place)`` in nats, exact; may be negative.

    ``log p(x) = log N(z; 0, I) + log |det dz/dx|``: affine couplings, given the place, turn the whitened vector at a position of a
    frozen network's maps into normal noise. The map holds the negative log density at each position.

    Needs a network that is trained for the gate: ``[encoder] spec = "train:feature_flow"``. Nothing is fitted; scoring takes one pass of
    the frozen network and one of the flow; the state is empty.

    Fails where odd features are likely ones: features of flat regions are easy, so that a smooth odd image may have a high likelihood.
    A small lesion hardly moves the mean over all positions: with ``top`` fewer count.

    Args:
        top: share of the positions whose mean is the image's score; 0 for the highest one alone, 1 for all.
    """

    top: float = 1.0

    passes: ClassVar[str] = "1F"
    reference: ClassVar[str] = (
        "Gudovskiy et al., CFLOW-AD: Real-Time Unsupervised Anomaly Detection with Localization via Conditional Normalizing Flows, "
        "WACV 2022, arXiv 2107.12571"
    )
