"""What methods share that compare the logits of several passes of one image."""

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.types import Signals
from offmap.score._head import two_or_more

MOST_PASSES = 1000


@dataclass(frozen=True, kw_only=True)
class ManyLogits(Detector):
    """Reads one signal ``(N, S, K)``: logits of S passes. Nothing to learn but S and K."""

    @property
    @abstractmethod
    def signal(self) -> str:
        """Name of the signal."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.signal})

    @abstractmethod
    def of_passes(self, log_p: Float64[Tensor, "n s k"]) -> Float64[Tensor, " n"]:
        """The score from the logarithms of the probabilities in each pass."""

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        shapes = {tuple(self._passes(batch).shape[1:]) for batch in batches}
        if len(shapes) != 1:
            raise SignalError(f"{self.method()}: batches have {self.signal} of different shapes {sorted(shapes)}")
        shape = shapes.pop()
        two_or_more(shape[1], self.method())
        return {"shape": torch.tensor(shape)}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        logits = self._passes(signals)
        if list(logits.shape[1:]) != state["shape"].tolist():
            raise SignalError(
                f"{self.method()}: {self.signal} of shape {tuple(logits.shape)} must be (N, S, K) with S, K = {state['shape'].tolist()}, "
                "as when it was fitted"
            )
        return self.of_passes(logits.log_softmax(dim=2))

    def _passes(self, signals: Signals) -> Float64[Tensor, "n s k"]:
        logits = signals[self.signal]
        if logits.ndim != 3 or 0 in logits.shape[1:]:
            raise SignalError(f"{self.method()}: {self.signal} of shape {tuple(logits.shape)} must be (N, S, K)")
        return logits.double()


def check_passes(passes: int, who: str) -> None:
    """Raises:
    ConfigError: fewer than two passes, or more than ``MOST_PASSES``.
    """
    if not 2 <= passes <= MOST_PASSES:
        raise ConfigError(f"{who}: samples = {passes} must be between 2 and {MOST_PASSES}")


def entropy(log_p: Float64[Tensor, "*n k"]) -> Float64[Tensor, "*n"]:
    """``-sum p log p`` over the last axis, in nats; a probability of zero adds zero."""
    terms: Tensor = torch.special.entr(log_p.exp())
    return terms.sum(dim=-1)


def log_mean(log_p: Float64[Tensor, "n s k"]) -> Float64[Tensor, "n k"]:
    """Logarithm of the mean probabilities."""
    return log_p.logsumexp(dim=1) - math.log(log_p.shape[1])


def disagreement(log_p: Float64[Tensor, "n s k"]) -> Float64[Tensor, " n"]:
    """Entropy of the mean less the mean entropy, that is the mean of ``KL(p_s || mean p)``: at least 0, without cancellation."""
    difference = log_p - log_mean(log_p)[:, None]
    return (log_p.exp() * difference).sum(dim=2).mean(dim=1).clamp_min(0)
