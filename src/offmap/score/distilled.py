"""The score of an expensive detector as a small network learned to tell it, and where."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.detector import Localiser, State
from offmap.core.errors import SignalError
from offmap.core.types import Signals

SCORE, MAP = "student.score", "student.map"


@dataclass(frozen=True)
class Distilled(Localiser):
    """What a student network says of an image; it was trained to give the teacher's standardised score.

    0 is about the teacher's usual score on in-distribution images, in its deviations on the scale ``sign(z) log(1 + |z|)``; higher is more
    OOD. The student's output is the mean of a map, which shows what each place adds to it: a pointer to where, not what the teacher's own
    map would show.

    Nothing is fitted; scoring is one pass of a network some hundred times cheaper than ten passes of a diffusion model; the state is empty.

    Fails for oddness of a kind that neither the teacher's training images nor the images drawn for the student have: there the student
    guesses, and may call usual what the teacher would flag. A cascade with the teacher behind it covers what the student leaves open, not
    what it is sure of.
    """

    restores: ClassVar[bool] = True
    passes: ClassVar[str] = "1F"
    reference: ClassVar[str] = "Hinton et al., Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531 (the idea)"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({SCORE})

    @property
    def fit_uses(self) -> frozenset[str]:
        return self.map_needs

    @property
    def map_needs(self) -> frozenset[str]:
        return frozenset({MAP})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        for batch in batches:
            self.raw_score({}, batch)
        return {}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        found = signals[SCORE]
        if found.ndim != 1:
            raise SignalError(f"distilled: {SCORE} of shape {tuple(found.shape)} must be (N,)")
        return found

    def raw_map(self, state: State, signals: Signals) -> Float[Tensor, "n *s"]:
        return signals[MAP][:, 0]
