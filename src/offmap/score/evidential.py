"""Lack of evidence of a network that was trained to give it."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from offmap.core.errors import ConfigError
from offmap.score._logits import LogitDetector

Evidence = Literal["softplus", "relu", "exp"]
"""How a logit becomes evidence, at least 0."""


@dataclass(frozen=True, kw_only=True)
class Evidential(LogitDetector):
    """Vacuity of a Dirichlet distribution over the classes, ``K / sum_k alpha_k`` with ``alpha_k = evidence(z_k) + 1``, in (0, 1].

    1: the network has seen nothing that speaks for any class; near 0: much does, be it for one class or for several.

    It means what it says only for a network that was trained evidentially, with the same function of its logits. Of a network trained
    with cross-entropy it is another energy score, and not a good one: such a network's logits may all be moved by one number
    without changing a single probability, and this score then changes.

    Nothing to fit; scoring costs K an image; the state is one number.

    Fails on networks trained otherwise, and where training never punished evidence for images without a class. With ``relu`` all
    images without a positive logit tie at 1. A network with one logit is refused.

    Args:
        evidence: ``softplus``, ``relu``, or ``exp``; that of the training.
    """

    evidence: Evidence = "softplus"

    reference: ClassVar[str] = (
        "Sensoy, Kaplan & Kandemir, Evidential Deep Learning to Quantify Classification Uncertainty, NeurIPS 2018, arXiv 1806.01768"
    )

    one_suffices: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.evidence not in get_args(Evidence):
            raise ConfigError(f"evidential: evidence = {self.evidence!r} must be one of {', '.join(get_args(Evidence))}")

    def of_logits(self, logits: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
        classes = logits.shape[1]
        if self.evidence == "exp":
            return (math.log(classes) - logits.logsumexp(dim=1)).sigmoid()
        evidence = functional.softplus(logits) if self.evidence == "softplus" else logits.relu()
        return classes / (classes + evidence.sum(dim=1))
