"""Entropy of the mean softmax over networks that were trained apart."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float64
from torch import Tensor

from offmap.score._ensemble import EnsembleLogits
from offmap.score._many import entropy, log_mean


@dataclass(frozen=True, kw_only=True)
class EnsembleEntropy(EnsembleLogits):
    """Deep ensemble, predictive entropy: ``H(mean_m p_m)`` in nats, in [0, log K], over M networks of the same classes.

    All uncertainty of the averaged answer, whether the members agree on being undecided or disagree. Members share the data and the
    classes, and nothing else: another start and another order of images. The paper takes five.

    Nothing to fit; scoring costs M forward passes, shared with ``ensemble_mutual_information``; the state is two numbers. While fitting,
    the members' answers are compared: one that has other classes in place of two or more of the first member's, each for three quarters
    of at least ten images on both sides, is refused, since its classes stand in another order. Fewer images do not tell.

    Fails where members are alike: heads on one frozen network, or snapshots of one training, are wrong together. Where all are sure of
    a distant image, so is their mean. Members with one logit are refused.
    """

    reference: ClassVar[str] = (
        "Lakshminarayanan, Pritzel & Blundell, Simple and Scalable Predictive Uncertainty Estimation Using Deep Ensembles, NeurIPS 2017, "
        "arXiv 1612.01474"
    )

    def of_passes(self, log_p: Float64[Tensor, "n s k"]) -> Float64[Tensor, " n"]:
        return entropy(log_mean(log_p))
