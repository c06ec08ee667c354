"""How far the code of an image is from the code of what an adversarial network makes of it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.errors import SignalError
from offmap.core.types import Signals


@dataclass(frozen=True, kw_only=True)
class GANomaly(Detector):
    """``|E(x) - E(G(E(x)))|^2 / z``, the error between the two codes of z numbers; at least 0.

    The paper trains an encoder, a decoder and a second encoder together. Here E and G are those of ``f_anogan``, and E is both encoders:
    the number is that of the paper's equation, of other networks.

    Needs an adversarial model of the in-distribution images (``train:gan``). Scoring takes two passes of the encoder and one of the
    generator; nothing is fitted, and there is no state.

    Fails where the encoder maps an odd image to a usual code: the image made from it is usual, and so is its code.
    """

    passes: ClassVar[str] = "3F"
    reference: ClassVar[str] = (
        "Akcay et al., GANomaly: Semi-Supervised Anomaly Detection via Adversarial Training, ACCV 2018, arXiv 1805.06725"
    )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"gan.latent_error"})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        for batch in batches:
            self.raw_score({}, batch)
        return {}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        errors = signals["gan.latent_error"]
        if errors.ndim != 1:
            raise SignalError(f"ganomaly: gan.latent_error of shape {tuple(errors.shape)} must be (N,)")
        return errors
