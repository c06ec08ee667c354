"""How much the bound on the likelihood of one image can be raised by refitting its posterior to it alone."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.signals import named
from offmap.core.types import Signals


@dataclass(frozen=True, kw_only=True)
class LikelihoodRegret(Detector):
    """``max_q ELBO(x; q) - ELBO(x; q_encoder)`` in nats, at least 0: the decoder stays, the posterior q starts from the encoder's.

    The encoder is near the best posterior for images like those that it was trained on, and far from it for others. Refitted are the mean
    and the variance of q, in place of the encoder's weights, so that many images go together and nothing of the model changes; q can
    only come closer that way.

    Needs a variational autoencoder of the in-distribution images. Scoring takes ``steps`` passes of the decoder forward and back and
    ``2 samples`` forward: a hundred times the price of a bound; nothing is fitted, and there is no state. A reference, not for routine.

    Fails where the decoder cannot make an odd image from any code: the bound stays low, and the regret is small. The number depends on
    steps and rate; with too few of them it is far from the maximum.

    Args:
        steps: of Adam on each image.
        rate: of Adam, for the mean and the logarithm of the variance.
        samples: codes with which the bound is measured before and after, the same ones.
    """

    steps: int = 100
    rate: float = 0.03
    samples: int = 8

    passes: ClassVar[str] = "116F+100B"
    reference: ClassVar[str] = (
        "Xiao et al., Likelihood Regret: An Out-of-Distribution Detection Score For Variational Auto-encoder, NeurIPS 2020, 2003.02977"
    )

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 10_000 or not 0 < self.rate <= 1 or not 1 <= self.samples <= 1000:
            raise ConfigError(
                f"likelihood_regret: steps = {self.steps} (1 to 10000), rate = {self.rate} (0, 1], samples = {self.samples} (1 to 1000)"
            )

    @property
    def signal(self) -> str:
        """Name of what is read."""
        return named("elbo.regret", {"steps": self.steps, "rate": self.rate, "samples": self.samples})

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.signal})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        for batch in batches:
            self.raw_score({}, batch)
        return {}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        found = signals[self.signal]
        if found.ndim != 1:
            raise SignalError(f"likelihood_regret: {self.signal} of shape {tuple(found.shape)} must be (N,)")
        return found
