"""SimpleNet: what a discriminator of usual features and the same with noise says."""

from dataclasses import dataclass
from typing import ClassVar

from offmap.score._one_map import TopOfMap


@dataclass(frozen=True, kw_only=True)
class SimpleNet(TopOfMap):
    """SimpleNet: the largest ``-D(q)`` over the positions of the image, without a bound; below 0 where features look usual.

    D is a network of one hidden layer on adapted features q of a frozen network, trained to be positive on in-distribution images and
    negative on the same features with Gaussian noise. The map holds ``-D(q)`` at each position.

    Needs a network that is trained for the gate: ``[encoder] spec = "train:simplenet"``. Nothing is fitted; scoring takes one pass of
    the frozen network and little more; the state is empty.

    Fails for features that lie far out in directions that noise in all of them hardly shows, and depends on how strong the noise was.

    Args:
        top: share of the positions whose mean is the image's score; 0 for the highest one alone, 1 for all.
    """

    passes: ClassVar[str] = "1F"
    reference: ClassVar[str] = (
        "Liu et al., SimpleNet: A Simple Network for Image Anomaly Detection and Localization, CVPR 2023, arXiv 2303.15140"
    )
