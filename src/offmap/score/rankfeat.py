"""Energy of the network's answer when feature maps have lost their leading singular triplet."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.errors import ConfigError
from offmap.core.signals import named
from offmap.core.types import Signals
from offmap.score._layer import rows_of


@dataclass(frozen=True, kw_only=True)
class RankFeat(Detector):
    """RankFeat: ``-logsumexp`` of the logits, averaged over layers, that the network gives when a layer's map is ``F - s1 u1 v1^T``.

    ``F`` is an image's map as a matrix of channels and positions, ``s1 u1 v1^T`` its best approximation of rank one, found by power
    iteration. In odd images the leading triplet is larger, and without it they answer less. In units of logits.

    Nothing to fit; scoring costs one forward pass for each layer and ``2 steps C S`` for C channels and S positions; the state is
    one number.

    Fails on networks without maps, such as transformers, and for layers after which the network does not come to an answer without the
    triplet: on small or shallow networks it carries the class.

    Args:
        layers: layers whose maps are changed, one at a time; ``last`` and ``last_but_one`` are the deepest with maps.
        steps: of the power iteration, 1 or more.
    """

    layers: tuple[str, ...] = ("last", "last_but_one")
    steps: int = 20

    passes: ClassVar[str] = "2F"
    reference: ClassVar[str] = (
        "Song et al., RankFeat: Rank-1 Feature Removal for Out-of-distribution Detection, NeurIPS 2022, arXiv 2209.08590"
    )

    def __post_init__(self) -> None:
        if not self.layers or len(set(self.layers)) != len(self.layers) or any(not layer or "*" in layer for layer in self.layers):
            raise ConfigError(f"rankfeat: layers = {list(self.layers)} must name one layer or more, each once")
        if self.steps < 1:
            raise ConfigError(f"rankfeat: steps = {self.steps} must be at least 1")

    @property
    def signals(self) -> tuple[str, ...]:
        """Names of the signals that it reads."""
        return tuple(named(f"rankfeat.logits.{layer}", {"steps": self.steps}) for layer in self.layers)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(self.signals)

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        classes: int | None = None
        for batch in batches:
            classes = self._logits(batch, classes).shape[1]
        return {"classes": torch.tensor(classes or 0)}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        return -self._logits(signals, int(state["classes"])).logsumexp(dim=1)

    def _logits(self, signals: Signals, classes: int | None) -> Float64[Tensor, "n k"]:
        parts = []
        for name in self.signals:
            parts.append(rows_of(signals, name, self.method(), classes))
            classes = parts[-1].shape[1]
        return torch.stack(parts).mean(dim=0)
