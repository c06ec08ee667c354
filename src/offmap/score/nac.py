"""How few in-distribution images put the neurons into the states that an image puts them into."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.errors import ConfigError
from offmap.core.types import Signals
from offmap.score._layer import rows_of
from offmap.score._layers import layers_in


@dataclass(frozen=True, kw_only=True)
class NAC(Detector):
    """Neuron activation coverage: ``-sum_l mean_neurons min(count / O, 1)``, in [-L, 0] for L layers; 0 if no fit image was ever like it.

    A neuron's state is ``v``, the mean over space of its activation times the gradient of ``KL(uniform || softmax)``; it is
    squashed to ``sigmoid(alpha v)`` and falls into one of ``bins`` equal bins of [0, 1]. ``count`` is how many fit images fell into
    this bin, ``O`` how many make it fully covered.

    Fitting counts in one pass; scoring costs C for each layer of C channels, a forward pass and one backward pass to the
    shallowest layer an image; the state is ``bins C`` numbers a layer.

    Fails where ``alpha`` does not suit the size of the gradients, which differs between networks and layers: all states in the middle
    bin, or all at the ends. Images that the fit part does not hold a like of in one neuron only hardly count.

    Args:
        layers: layers to use, ``penultimate`` among them; none named: all.
        bins: number of bins, 2 or more.
        alpha: steepness of the sigmoid, greater than 0.
        full: O, greater than 0; not given: a hundredth of the fit images, at least 1 and at most 50, the paper's number.
    """

    layers: tuple[str, ...] = ()
    bins: int = 50
    alpha: float = 100.0
    full: float | None = None

    passes: ClassVar[str] = "1F+1B"
    reference: ClassVar[str] = (
        "Liu et al., Neuron Activation Coverage: Rethinking Out-of-distribution Detection, ICLR 2024, arXiv 2306.02879"
    )

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise ConfigError(f"nac: bins = {self.bins} must be at least 2")
        for name in ("alpha", "full"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"nac: {name} = {value} must be greater than 0 and finite")
        if any(not layer or "*" in layer for layer in self.layers):
            raise ConfigError(f"nac: layers = {list(self.layers)} must be names of layers; none for all")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({f"nac.{layer}" for layer in self.layers} or {"nac.*"})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        counts: dict[str, Tensor] = {}
        total = 0
        for batch in batches:
            chosen = layers_in(batch, "nac", self.layers)
            for i, layer in enumerate(chosen):
                key = f"layer.{i:02d}.{layer}"
                width = len(counts[key]) if key in counts else None
                index = self._bins(rows_of(batch, f"nac.{layer}", "nac", width))
                if width is None:
                    counts[key] = index.new_zeros(index.shape[1], self.bins)
                counts[key].scatter_add_(1, index.T, torch.ones_like(index.T))
            total += len(batch[f"nac.{chosen[0]}"])
        full = min(50.0, max(1.0, total / 100)) if self.full is None else self.full
        return {key: (count / full).clamp_max(1.0).float() for key, count in counts.items()}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        covered = []
        for key in sorted(state):
            index = self._bins(rows_of(signals, f"nac.{key.split('.', 2)[2]}", "nac", len(state[key])))
            covered.append(state[key].T.gather(0, index).double().mean(dim=1))
        return -torch.stack(covered).sum(dim=0)

    def _bins(self, rows: Float[Tensor, "n c"]) -> Int64[Tensor, "n c"]:
        return ((self.alpha * rows).sigmoid() * self.bins).long().clamp_max(self.bins - 1)
