"""How much networks that were trained apart disagree."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float64
from torch import Tensor

from offmap.score._ensemble import EnsembleLogits
from offmap.score._many import disagreement


@dataclass(frozen=True, kw_only=True)
class EnsembleMutualInformation(EnsembleLogits):
    """Deep ensemble, mutual information: ``H(mean_m p_m) - mean_m H(p_m)`` in nats, in [0, min(log K, log M)], over M networks.

    What the members disagree about; 0 where all give one answer, however undecided. Taken as the mean of ``KL(p_m || mean p)``, which is
    the same number without cancellation; the paper proposes their sum. Members as in ``ensemble_entropy``.

    Nothing to fit; scoring costs M forward passes, shared with ``ensemble_entropy``; the state is two numbers. Members whose classes
    stand in another order are refused as there.

    Fails where members are alike or were fooled alike: what none of them has learnt to see they do not disagree about. With two or three
    members the number is coarse. Members with one logit are refused.
    """

    reference: ClassVar[str] = (
        "Lakshminarayanan, Pritzel & Blundell, Simple and Scalable Predictive Uncertainty Estimation Using Deep Ensembles, NeurIPS 2017, "
        "arXiv 1612.01474; mutual information after Houlsby et al. 2011, arXiv 1112.5745"
    )

    def of_passes(self, log_p: Float64[Tensor, "n s k"]) -> Float64[Tensor, " n"]:
        return disagreement(log_p)
