"""What methods that read nothing but logits share."""

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.errors import SignalError
from offmap.core.types import Signals
from offmap.score._head import two_or_more
from offmap.score._layer import rows_of


@dataclass(frozen=True, kw_only=True)
class LogitDetector(Detector):
    """A function of the logits with nothing to learn but how many there are."""

    one_suffices: ClassVar[bool] = True
    """The score means something for a network with one logit."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"logits"})

    @abstractmethod
    def of_logits(self, logits: Float64[Tensor, "n k"]) -> Float64[Tensor, " n"]:
        """The score, higher = more OOD."""

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        widths = {rows_of(batch, "logits", self.method()).shape[1] for batch in batches}
        if len(widths) != 1:
            raise SignalError(f"{self.method()}: batches have logits of different widths {sorted(widths)}")
        classes = widths.pop()
        if not self.one_suffices:
            two_or_more(classes, self.method())
        return {"classes": torch.tensor(classes)}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        return self.of_logits(rows_of(signals, "logits", self.method(), int(state["classes"])))
