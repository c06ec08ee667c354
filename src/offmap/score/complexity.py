"""How improbable a variational autoencoder finds the image, beyond how complex it is."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import log
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.errors import SignalError
from offmap.core.types import Signals
from offmap.score._bound import bound_of, check_samples, parts_name, parts_of

BITS = "complexity.bits"


@dataclass(frozen=True, kw_only=True)
class Complexity(Detector):
    """Bits that the model needs for an image less those that a general compressor needs, a pixel value: ``(-log2 p(x) - L(x)) / d``.

    ``-log2 p(x)`` is the negative bound of ``elbo``, L the size of the same 8-bit image as PNG of level 9. What is simple is cheap for
    both; the difference, the logarithm of a ratio of likelihoods, is low where the model knows more than the compressor, and high where
    it does not. May be negative.

    Needs a variational autoencoder. Nothing is fitted; scoring takes what ``elbo`` takes and some milliseconds of a PNG encoder on the
    processor; the state is empty.

    Fails where odd images compress as badly as the model explains them, such as noise. PNG's headers (some 460 bits) weigh in small
    images, the same in all of one size.

    Args:
        samples: codes drawn from the posterior of each image; 0 for its mean alone.
    """

    samples: int = 1

    reference: ClassVar[str] = (
        "Serra et al., Input Complexity and Out-of-Distribution Detection with Likelihood-Based Generative Models, ICLR 2020, "
        "arXiv 1909.11480"
    )

    def __post_init__(self) -> None:
        check_samples("complexity", self.samples)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({parts_name(self.samples), BITS})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        for batch in batches:
            self.raw_score({}, batch)
        return {}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        name = parts_name(self.samples)
        model, compressed = -bound_of(signals, name, "complexity") / log(2), signals[BITS].double()
        if compressed.ndim != 1:
            raise SignalError(f"complexity: {BITS} of shape {tuple(compressed.shape)} must be (N,)")
        return (model - compressed) / parts_of(signals, name, "complexity")[:, 2]
