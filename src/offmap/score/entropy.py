"""Entropy of the softmax."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from offmap.score._logits import LogitDetector, negative_entropy


@dataclass(frozen=True, kw_only=True)
class Entropy(LogitDetector):
    """Entropy of the softmax, ``-sum_k p_k log p_k`` in nats, in [0, log K].

    How undecided the classifier is among all its classes, where ``msp`` sees the first only. Taken from differences to
    the largest logit, so that a probability of zero adds zero, and sure predictions keep their order.

    Nothing to fit; scoring costs K an image; the state is one number.

    Fails as ``msp`` does: logits grow with distance from the training data, and the entropy of distant images vanishes.
    An image between two true classes looks odd. A network with one logit has no softmax and is refused.
    """

    reference: ClassVar[str] = (
        "Shannon, A Mathematical Theory of Communication, Bell System Technical Journal 1948; as an OOD score in Liu et al., GEN, CVPR 2023"
    )

    one_suffices: ClassVar[bool] = False

    def of_logits(self, logits: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
        return -negative_entropy(logits)
