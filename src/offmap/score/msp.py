"""Maximum softmax probability."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float64
from torch import Tensor

from offmap.score._logits import LogitDetector


@dataclass(frozen=True, kw_only=True)
class MSP(LogitDetector):
    """One minus the largest softmax probability, ``1 - max_k p_k``, in [0, 1 - 1/K].

    The chance of error that the classifier itself claims. Computed as ``r / (1 + r)`` from ``r``, the sum of ``exp(z_k - max z)``
    over the other classes, so that sure predictions keep their order where ``1 - p`` is zero for all of them.

    Nothing to fit; scoring costs K an image; the state is one number.

    Fails on images far from the training data: logits grow with distance, and the classifier becomes more sure of them.
    A network with one logit has no softmax and is refused.
    """

    reference: ClassVar[str] = (
        "Hendrycks & Gimpel, A Baseline for Detecting Misclassified and Out-of-Distribution Examples, ICLR 2017, arXiv 1610.02136"
    )

    one_suffices: ClassVar[bool] = False

    def of_logits(self, logits: Float64[Tensor, "n k"]) -> Float64[Tensor, " n"]:
        top, which = logits.max(dim=1, keepdim=True)
        rest = (logits - top).exp().scatter(1, which, 0.0).sum(dim=1)
        return rest / (1 + rest)
