"""Generalised entropy."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float64
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.score._logits import LogitDetector


@dataclass(frozen=True, kw_only=True)
class GEN(LogitDetector):
    """Generalised entropy ``sum_k p_k^g (1 - p_k)^g`` over the ``top`` largest probabilities, in [0, K 4^-g].

    An entropy that tells sure predictions apart: with a small exponent a probability of 1e-4 instead of 1e-8 counts,
    which ``entropy`` hardly sees. ``1 - p_k`` of the largest is taken from the other classes' logits, so the order holds
    where it is zero in floating point.

    Nothing to fit; scoring costs K log K an image; the state is one number.

    Fails as every function of the softmax does on distant images, whose logits are large; and with many classes and
    a small exponent the tail of tiny probabilities, which is noise, outweighs the top (hence ``top``).
    A network with one logit has no softmax and is refused.

    Args:
        gamma: exponent g in (0, 1) in the paper; any g > 0 is taken. Small ones amplify small probabilities.
        top: how many of the largest probabilities count; all where there are fewer.
    """

    gamma: float = 0.1
    top: int = 100

    reference: ClassVar[str] = "Liu, Lochman & Zach, GEN: Pushing the Limits of Softmax-Based Out-of-Distribution Detection, CVPR 2023"

    one_suffices: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.gamma < float("inf"):
            raise ConfigError(f"gen: gamma = {self.gamma} must be greater than 0")
        if self.top < 1:
            raise ConfigError(f"gen: top = {self.top} must be at least 1")

    def of_logits(self, logits: Float64[Tensor, "n k"]) -> Float64[Tensor, " n"]:
        descending = logits.sort(dim=1, descending=True).values
        log_p = descending.log_softmax(dim=1)
        log_rest = (-log_p.exp()).log1p()
        log_rest[:, 0] = descending[:, 1:].logsumexp(dim=1) - descending.logsumexp(dim=1)
        terms = self.gamma * (log_p + log_rest)
        return terms[:, : self.top].exp().sum(dim=1)
