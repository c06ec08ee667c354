"""What methods that read nothing but logits share."""

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from offmap.core.detector import Detector, State
from offmap.core.errors import SignalError
from offmap.core.types import Signals
from offmap.score._head import two_or_more
from offmap.score._layer import rows_as_given


@dataclass(frozen=True, kw_only=True)
class LogitDetector(Detector):
    """A function of the logits with nothing to learn but how many there are."""

    one_suffices: ClassVar[bool] = True
    """The score means something for a network with one logit."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"logits"})

    @abstractmethod
    def of_logits(self, logits: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
        """The score, higher = more OOD, as exact as the logits are: without differences of near-equal numbers."""

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        widths = {rows_as_given(batch, "logits", self.method()).shape[1] for batch in batches}
        if len(widths) != 1:
            raise SignalError(f"{self.method()}: batches have logits of different widths {sorted(widths)}")
        classes = widths.pop()
        if not self.one_suffices:
            two_or_more(classes, self.method())
        return {"classes": torch.tensor(classes)}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        return self.of_logits(rows_as_given(signals, "logits", self.method(), int(state["classes"])))


def all_but_top(p: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """``1 - max_k p_k`` of a softmax, as the sum of the other probabilities where it is small; overwrites ``p``."""
    top = p.amax(dim=1)
    return torch.where(top > 0.5, -minus_below(p, 0.5).sum(dim=1), 1 - top)


def minus_below(positive: Float[Tensor, "n k"], limit: float) -> Float[Tensor, "n k"]:
    """Minus the numbers less than the limit, zero in place of the others; in place, and without a mask, which is slow."""
    return functional.threshold(positive.neg_(), -limit, 0.0, inplace=True)


def negative_entropy(logits: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """``sum_k p_k log p_k``, <= 0, relative to its size as exact as the logits are.

    With ``y = z - max z`` and ``r`` the sum of ``exp(y)`` over all but the largest it is ``sum y exp(y) / (1 + r) - log(1 + r)``.
    """
    lower = logits - logits.amax(dim=1, keepdim=True)
    odds = lower.exp()
    weighted, total = lower.mul_(odds).sum(dim=1), odds.sum(dim=1)
    rest = torch.where(total < 2, -minus_below(odds, 1.0).sum(dim=1), total - 1)
    return weighted / (1 + rest) - rest.log1p()
