"""What methods share that compare the members of an ensemble."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from offmap.core.detector import State
from offmap.core.errors import SignalError
from offmap.core.types import Signals
from offmap.score._many import ManyLogits

FEWEST, MOST_OF = 10, 0.75
"""Images of a class, and the share of them on both sides, that say that two members call it differently."""


@dataclass(frozen=True, kw_only=True)
class EnsembleLogits(ManyLogits):
    """Reads ``ensemble.logits``, and refuses members whose classes stand in another order."""

    passes: ClassVar[str] = "M·F"

    @property
    def signal(self) -> str:
        return "ensemble.logits"

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        state = super().learn(batches, held_out, generator)
        if int(state["shape"][0]) < 2:
            raise SignalError(f"{self.method()}: {self.signal} is of one member; two networks or more are needed")
        together = _together(self._passes(batch) for batch in batches)
        for member, counts in enumerate(together, 2):
            found = renamed(counts)
            if len(found) > 1:
                pairs = ", ".join(f"{theirs} for {ours}" for ours, theirs in found)
                raise SignalError(
                    f"{self.method()}: member {member} of the ensemble says other classes than the first member of the same images: "
                    f"{pairs} (counted from 0). Are its classes in the same order?"
                )
        return state


def renamed(counts: Float64[Tensor, "k k"]) -> list[tuple[int, int]]:
    """Classes of the first member that the second has another class for, with that class.

    Args:
        counts: images by the first member's answer (rows) and the second's (columns).
    """
    share = counts / torch.maximum(counts.sum(dim=1, keepdim=True), counts.sum(dim=0, keepdim=True)).clamp_min(1)
    suspects = (share > MOST_OF) & (counts >= FEWEST)
    return [(int(i), int(j)) for i, j in torch.nonzero(suspects) if i != j]


def _together(batches: Iterable[Float64[Tensor, "n s k"]]) -> Float64[Tensor, "m k k"]:
    """Images by the first member's answer and that of each of the others."""
    total: Tensor | None = None
    for logits in batches:
        classes = logits.shape[2]
        chosen = torch.nn.functional.one_hot(logits.argmax(dim=2), classes).double()
        counts = torch.einsum("nk,nml->mkl", chosen[:, 0], chosen[:, 1:])
        total = counts if total is None else total + counts
    return torch.zeros(0, 1, 1, dtype=torch.float64) if total is None else total
