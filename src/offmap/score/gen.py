"""Generalised entropy."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from offmap.core.errors import ConfigError
from offmap.score._logits import LogitDetector, minus_below


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

    def of_logits(self, logits: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
        if self.top < logits.shape[1]:
            whole = logits.logsumexp(dim=1, keepdim=True)
            log_p = logits.topk(self.top, dim=1, sorted=False).values - whole
        else:
            log_p = logits.log_softmax(dim=1)
        p = log_p.exp()
        top = p.amax(dim=1)
        sure = top > 0.5
        terms = log_p.add_(minus_below(p, 0.6).log1p_()).mul_(self.gamma).exp_()
        unfinished = terms.amax(dim=1)
        return terms.sum(dim=1) - torch.where(sure, unfinished - self._of_top(logits), 0)

    def _of_top(self, logits: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
        """The term of the largest probability where it is more than one half; by logarithms, as ``1 - p`` may be no number above zero."""
        lower = logits - logits.amax(dim=1, keepdim=True)
        others = -functional.threshold(-lower, 0.0, torch.finfo(lower.dtype).max)
        log_odds = others.logsumexp(dim=1)
        return (self.gamma * (log_odds - 2 * log_odds.exp().log1p())).exp()
