"""How little the gradients of an image's reconstruction are aligned with those of the training."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.types import Signals


@dataclass(frozen=True, kw_only=True)
class GradCon(Detector):
    """``e(x) - weight * mean_l cos(dL(x)/dW_l, G_l)``: e the mean squared error of the reconstruction, W_l the decoder's layers.

    L is the loss of the reconstruction, and G_l the running mean of its gradients while the model was trained, kept with the model. An
    image that asks the decoder for other changes than the training images did is odd. Pixels of e are in [0, 1].

    Needs a variational autoencoder of the in-distribution images that was trained with ``gradients = true``. Scoring takes a pass forward
    and one back for each image by itself; nothing is fitted, and there is no state.

    Fails where the running mean is noise: at the end of a training the gradients of usual images point everywhere, and their
    cosines are near 0 as those of odd ones are. The paper trains with a term that keeps them aligned, which is left out.

    Args:
        weight: of the cosines, 0 or more; 0.12 in the paper, for errors of its own scale.
    """

    weight: float = 0.12

    passes: ClassVar[str] = "1F+1B"
    reference: ClassVar[str] = (
        "Kwon et al., Backpropagated Gradient Representations for Anomaly Detection, ECCV 2020, arXiv 2007.09507 (GradCon)"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise ConfigError(f"gradcon: weight = {self.weight} must be 0 or more")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"gradcon.alignment", "reconstruction.l2"})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        for batch in batches:
            self.raw_score({}, batch)
        return {}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        cosines, errors = signals["gradcon.alignment"].double(), signals["reconstruction.l2"].double()
        if cosines.ndim != 2 or cosines.shape[1] == 0 or errors.ndim != 1:
            raise SignalError(
                f"gradcon: gradcon.alignment of shape {tuple(cosines.shape)} must be (N, L), reconstruction.l2 of shape "
                f"{tuple(errors.shape)} (N,)"
            )
        return errors - self.weight * cosines.mean(dim=1)
