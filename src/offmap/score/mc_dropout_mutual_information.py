"""How much passes with dropout disagree: mutual information of the answer and the weights."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float64
from torch import Tensor

from offmap.core.signals import named
from offmap.score._many import ManyLogits, check_passes, disagreement


@dataclass(frozen=True, kw_only=True)
class MCDropoutMutualInformation(ManyLogits):
    """Monte-Carlo dropout, mutual information: ``H(mean_s p_s) - mean_s H(p_s)`` in nats, in [0, log K], over passes with dropout on.

    What the passes disagree about; 0 where all give one answer, however undecided. Taken as the mean of ``KL(p_s || mean p)``, which is
    the same number without cancellation. Dropout and noise as in ``mc_dropout_entropy``.

    Nothing to fit; scoring costs ``samples`` forward passes, shared with ``mc_dropout_entropy``; the state is two numbers.

    Fails where the network is sure in every pass: distant images get large logits that no mask turns over. It sees what a mask of
    units changes, not what the network never learnt. A network without dropout parts is refused; so is one with one logit.

    Args:
        samples: S, passes an image, 2 to 1000.
    """

    samples: int = 30

    passes: ClassVar[str] = "S·F"
    reference: ClassVar[str] = (
        "Gal & Ghahramani, Dropout as a Bayesian Approximation, ICML 2016, arXiv 1506.02142; "
        "mutual information after Houlsby et al. 2011, arXiv 1112.5745"
    )

    def __post_init__(self) -> None:
        check_passes(self.samples, self.method())

    @property
    def signal(self) -> str:
        return named("mc_dropout.logits", {"passes": self.samples})

    def of_passes(self, log_p: Float64[Tensor, "n s k"]) -> Float64[Tensor, " n"]:
        return disagreement(log_p)
