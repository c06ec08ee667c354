"""Norm of the gradient of the head, in closed form."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.errors import ConfigError
from offmap.core.types import Signals
from offmap.score._head import PENULTIMATE, common_widths, two_or_more
from offmap.score._layer import rows_as_given


@dataclass(frozen=True, kw_only=True)
class GradNorm(Detector):
    """Minus the L1 norm of the gradient of the head's weights, ``-|K p - 1|_1 |h|_1``, with ``p = softmax(z / T)``.

    The gradient of the summed cross-entropy between the prediction and the uniform distribution with respect to the
    weights is ``(K p - 1) h^T / T``, of rank one, so its norm is a product and needs no backward pass. A sure prediction from
    strong features gives a long gradient and a low score. The number is at most 0; ``1 / T``, equal for all images, is left out.

    Nothing to fit; scoring costs K + D an image; the state is two numbers.

    Fails where distant images have long features: ``|h|_1`` then outweighs the indecision. A network with one logit is refused.

    Args:
        temperature: T > 0; 1 in the paper.
    """

    temperature: float = 1.0

    reference: ClassVar[str] = (
        "Huang, Geng & Li, On the Importance of Gradients for Detecting Distributional Shifts in the Wild, NeurIPS 2021, arXiv 2110.00218"
    )

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(f"gradnorm: temperature = {self.temperature} must be greater than 0")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({PENULTIMATE, "logits"})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        width, classes = common_widths(batches, "gradnorm")
        two_or_more(classes, "gradnorm")
        return {"width": torch.tensor(width), "classes": torch.tensor(classes)}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        features = rows_as_given(signals, PENULTIMATE, "gradnorm", int(state["width"]))
        logits = rows_as_given(signals, "logits", "gradnorm", int(state["classes"]))
        p = (logits if self.temperature == 1 else logits / self.temperature).softmax(dim=1)
        uneven = p.mul_(logits.shape[1]).sub_(1).abs_().sum(dim=1)
        length: Tensor = torch.linalg.vector_norm(features, ord=1, dim=1)
        return -uneven * length
