"""Softmax at a high temperature after a small step of the input towards the predicted class."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.errors import SignalError
from offmap.core.signals import named
from offmap.core.types import Signals
from offmap.score._head import two_or_more
from offmap.score._layer import rows_of
from offmap.score._step import check_step


@dataclass(frozen=True, kw_only=True)
class ODIN(Detector):
    """ODIN: ``1 - max_k softmax(z(x') / T)_k``, in [0, 1 - 1/K], where ``x'`` is the input after one step towards the predicted class.

    ``x' = x - epsilon / std * sign(grad_x of -log softmax(z(x) / T)_top)``, x normalised, std that of each channel, so that
    ``epsilon`` is in units of pixels in [0, 1], as in the authors' code. In-distribution images gain more from the step.

    Nothing to fit; scoring costs two forward passes and one backward pass an image, shared with other detectors of equal ``epsilon``
    and ``temperature``; the state is one number.

    Fails where the defaults, tuned on natural images, do not suit: the best ``epsilon`` differs between data sets, and with unseen
    images none can be chosen. At T = 1000 all scores lie close to ``1 - 1/K``; with K = 1000 float32 tells logits apart to about 0.06.

    Args:
        epsilon: length of the step for each pixel value, 0 or more; 0 leaves the image as it is.
        temperature: T, greater than 0; the paper tries 1 to 1000.
    """

    epsilon: float = 0.0014
    temperature: float = 1000.0

    passes: ClassVar[str] = "2F+1B"
    reference: ClassVar[str] = (
        "Liang et al., Enhancing The Reliability of Out-of-distribution Image Detection in Neural Networks, ICLR 2018, arXiv 1706.02690"
    )

    def __post_init__(self) -> None:
        check_step(self.epsilon, self.temperature, self.method())

    @property
    def signal(self) -> str:
        """Name of the signal that it reads."""
        return named("odin.logits", {"epsilon": self.epsilon, "temperature": self.temperature})

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.signal})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        widths = {rows_of(batch, self.signal, self.method()).shape[1] for batch in batches}
        if len(widths) != 1:
            raise SignalError(f"odin: batches have logits of different widths {sorted(widths)}")
        classes = widths.pop()
        two_or_more(classes, self.method())
        return {"classes": torch.tensor(classes)}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        scaled = rows_of(signals, self.signal, self.method(), int(state["classes"])) / self.temperature
        return -torch.expm1(scaled.amax(dim=1) - scaled.logsumexp(dim=1))
