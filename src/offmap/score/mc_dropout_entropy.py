"""Entropy of the mean softmax over passes with dropout."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float64
from torch import Tensor

from offmap.core.signals import named
from offmap.score._many import ManyLogits, check_passes, entropy, log_mean


@dataclass(frozen=True, kw_only=True)
class MCDropoutEntropy(ManyLogits):
    """Monte-Carlo dropout, predictive entropy: ``H(mean_s p_s)`` in nats, in [0, log K], over passes with dropout on.

    All uncertainty of the averaged answer, whether the passes agree on being undecided or disagree. Only dropout parts (``nn.Dropout``
    and its kin) are on, batch normalisation stays in eval mode, and so does dropout that is a function and no part; the noise of an
    image depends on its pixels only.

    Nothing to fit; scoring costs ``samples`` forward passes, shared with ``mc_dropout_mutual_information``; the state is two numbers.

    Fails where dropout sits in the last layers only, which is usual: the passes differ little and the number is that of ``entropy``. A
    network without dropout parts is refused; so is one with one logit.

    Args:
        samples: S, passes an image, 2 to 1000.
    """

    samples: int = 30

    passes: ClassVar[str] = "S·F"
    reference: ClassVar[str] = (
        "Gal & Ghahramani, Dropout as a Bayesian Approximation, ICML 2016, arXiv 1506.02142; entropy as in Gal, thesis, Cambridge 2016"
    )

    def __post_init__(self) -> None:
        check_passes(self.samples, self.method())

    @property
    def signal(self) -> str:
        return named("mc_dropout.logits", {"passes": self.samples})

    def of_passes(self, log_p: Float64[Tensor, "n s k"]) -> Float64[Tensor, " n"]:
        return entropy(log_mean(log_p))
