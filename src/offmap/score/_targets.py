"""Which logit stands for which label, for methods that ask whether a prediction was right."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from offmap.core.errors import SignalError
from offmap.core.moments import ClassMoments
from offmap.core.types import Signals
from offmap.score._gaussian import class_moments
from offmap.score._layer import labels_of, rows_as_given, rows_of

Rows = tuple[Float64[Tensor, "n k"], Int64[Tensor, " n"], Int64[Tensor, " n"]]
"""Logits, predicted class, right class."""


@dataclass(frozen=True, eq=False)
class Targets:
    """The logit of each label.

    Args:
        labels: ascending; any integers.
        logits: index of the logit that stands for each.
    """

    labels: Int64[Tensor, " c"]
    logits: Int64[Tensor, " c"]

    @classmethod
    def learn(cls, batches: Iterable[Signals], who: str) -> "Targets":
        """Match labels and logits from the predictions.

        Numbers that a user gives to classes need not be the indices of the head, so each label gets the logit under which the
        images are likeliest (a one-to-one assignment; labels beyond the number of logits share the likeliest).

        Raises:
            SignalError: labels are missing or no whole numbers.
        """
        return cls.of(class_moments(batches, lambda batch: rows_of(batch, "logits", who).log_softmax(dim=1), who=who))

    @classmethod
    def of(cls, sums: ClassMoments) -> "Targets":
        """From the mean log-probabilities of each label's images."""
        from scipy.optimize import linear_sum_assignment

        likelihood = sums.counts[:, None] * sums.means
        logits = sums.means.argmax(dim=1)
        some, matched = linear_sum_assignment(likelihood.cpu().numpy(), maximize=True)
        logits[torch.as_tensor(some, device=logits.device)] = torch.as_tensor(matched, device=logits.device)
        return cls(sums.labels, logits)

    def __call__(self, batch: Signals, who: str) -> Int64[Tensor, " n"]:
        """The index of the right logit for each image of a batch that was learned from."""
        labels = labels_of(batch, who)
        if labels is None:
            raise SignalError(f"{who}: some batches have the signal label and others do not; give it in all of them or in none")
        return self.logits[torch.searchsorted(self.labels, labels.to(self.labels.device))]


def predicted(batch: Signals, who: str, width: int | None = None) -> tuple[Float[Tensor, "n k"], Int64[Tensor, " n"]]:
    """Logits, and the index of the largest."""
    logits = rows_as_given(batch, "logits", who, width)
    return logits, logits.argmax(dim=1)


def right_or_predicted(batches: Iterable[Signals], who: str) -> Callable[[Signals], Rows]:
    """Reads a batch: logits, the predicted class, and the right class, which is the predicted one where there are no labels."""
    targets = Targets.learn(batches, who) if "label" in next(iter(batches)) else None

    def read(batch: Signals) -> Rows:
        logits, which = predicted(batch, who)
        return logits.double(), which, which if targets is None else targets(batch, who)

    return read
