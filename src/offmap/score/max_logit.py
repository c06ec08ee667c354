"""Largest logit."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from offmap.score._logits import LogitDetector


@dataclass(frozen=True, kw_only=True)
class MaxLogit(LogitDetector):
    """Largest logit with its sign turned, ``-max_k z_k``.

    Keeps the scale of the logits, which the softmax of ``msp`` throws away. The number is in units of the network's logits.

    Nothing to fit; scoring costs K an image; the state is one number.

    Fails where distant images get large logits, and between networks: adding one constant to all logits changes every score.
    """

    reference: ClassVar[str] = (
        "Hendrycks et al., Scaling Out-of-Distribution Detection for Real-World Settings, ICML 2022, arXiv 1911.11132"
    )

    def of_logits(self, logits: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
        return -logits.amax(dim=1)
