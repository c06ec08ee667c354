"""Agreement with the stored pattern of the predicted class."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.types import Signals
from offmap.score._head import PENULTIMATE
from offmap.score._layer import row_products, rows_as_given, rows_of
from offmap.score._targets import predicted, right_or_predicted


@dataclass(frozen=True, kw_only=True)
class SHE(Detector):
    """Simplified Hopfield energy, ``-<h, S_c>`` with c the predicted class.

    ``S_c`` is the mean feature of the in-distribution images of class c that are classified rightly; of all images of
    the class where none is; zero (a score of 0) where there is no such image at all. Without labels, every prediction
    counts as right. Labels need not be the indices of the logits: each gets the logit under which its images are likeliest.

    Fitting adds up ``2 K D`` numbers; scoring costs D an image; the state is ``K D`` numbers.

    Fails with the length of features: an odd image with long features agrees more with any pattern, and so does a
    class with long ones. Features far from the origin, all with one large common part, hardly differ.
    """

    reference: ClassVar[str] = (
        "Zhang et al., Out-of-Distribution Detection based on In-Distribution Data Patterns Memorization with Modern Hopfield Energy, "
        "ICLR 2023"
    )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({PENULTIMATE, "logits"})

    @property
    def fit_uses(self) -> frozenset[str]:
        return frozenset({"label"})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        read = right_or_predicted(batches, "she")
        first = next(iter(batches))
        width, classes = (rows_of(first, name, "she").shape[1] for name in (PENULTIMATE, "logits"))
        zero = torch.zeros(2, classes, width + 1, dtype=torch.float64, device=first[PENULTIMATE].device)
        everyone, correct = zero
        for batch in batches:
            rows = rows_of(batch, PENULTIMATE, "she", width)
            counted = torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
            _, which, right = read(batch)
            everyone = everyone.index_add(0, right, counted)
            correct = correct.index_add(0, right[which == right], counted[which == right])
        sums = torch.where(correct[:, -1:] > 0, correct, everyone)
        return {"patterns": sums[:, :-1] / sums[:, -1:].clamp_min(1)}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        patterns = state["patterns"]
        which = predicted(signals, "she", len(patterns))[1]
        rows = rows_as_given(signals, PENULTIMATE, "she", patterns.shape[1])
        return -row_products(rows, patterns.to(rows), which)
