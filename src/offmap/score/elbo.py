"""How improbable a variational autoencoder finds the image."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import log
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.errors import ConfigError
from offmap.core.types import Signals
from offmap.score._bound import bound_of, check_samples, parts_name, parts_of


@dataclass(frozen=True, kw_only=True)
class ELBO(Detector):
    """Negative evidence lower bound, ``-E_q log p(x|z) + KL(q(z|x)|p(z))``, at least ``-log p(x)``.

    The image is taken at 256 grey levels, whose probabilities add up to 1 (a Gaussian decoder's, integrated over the bin of each level):
    the number is at least 0, and, in bits, the length of a code for the image. In nats of the image, or in bits a pixel value.

    Needs a variational autoencoder. Nothing is fitted; scoring takes one pass of the encoder and ``samples`` of the decoder; the state is
    empty.

    Fails for simple images, which it finds more probable than usual ones, however odd: smooth, flat or dark ones have a low number. Use
    ``complexity`` or ``typicality``; alone this is a baseline.

    Args:
        samples: codes drawn from the posterior of each image; 0 for its mean alone.
        unit: ``nats`` of the whole image, or ``bits_per_value``, which compares images of several sizes.
    """

    samples: int = 1
    unit: Literal["nats", "bits_per_value"] = "nats"

    reference: ClassVar[str] = "Kingma and Welling, Auto-Encoding Variational Bayes, ICLR 2014, arXiv 1312.6114"

    def __post_init__(self) -> None:
        check_samples("elbo", self.samples)
        if self.unit not in ("nats", "bits_per_value"):
            raise ConfigError(f"elbo: unit = {self.unit!r} must be nats or bits_per_value")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({parts_name(self.samples)})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        for batch in batches:
            parts_of(batch, parts_name(self.samples), "elbo")
        return {}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        nats = -bound_of(signals, parts_name(self.samples), "elbo")
        if self.unit == "nats":
            return nats
        return nats / (log(2) * parts_of(signals, parts_name(self.samples), "elbo")[:, 2])
