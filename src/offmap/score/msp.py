"""Maximum softmax probability."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from offmap.score._logits import LogitDetector, all_but_top


@dataclass(frozen=True, kw_only=True)
class MSP(LogitDetector):
    """One minus the largest softmax probability, ``1 - max_k p_k``, in [0, 1 - 1/K].

    The chance of error that the classifier itself claims. Computed as the sum of the other probabilities
    where it is small, so that sure predictions keep their order where ``1 - p`` is zero for all of them.

    Nothing to fit; scoring costs K an image; the state is one number.

    Fails on images far from the training data: logits grow with distance, and the classifier becomes more sure of them.
    A network with one logit has no softmax and is refused.
    """

    reference: ClassVar[str] = (
        "Hendrycks & Gimpel, A Baseline for Detecting Misclassified and Out-of-Distribution Examples, ICLR 2017, arXiv 1610.02136"
    )

    one_suffices: ClassVar[bool] = False

    def of_logits(self, logits: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
        return all_but_top(logits.softmax(dim=1))
