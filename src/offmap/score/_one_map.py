"""What methods share that read one map which a network gives, and learn nothing more."""

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.detector import Localiser, State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.types import Signals
from offmap.score._patches import mean_of_top


@dataclass(frozen=True, kw_only=True)
class MapDetector(Localiser):
    """Reads ``<method>.map (N, 1, *S)``; its state is empty."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({f"{self.method()}.map"})

    @abstractmethod
    def of_image(self, maps: Float[Tensor, "n p"]) -> Float[Tensor, " n"]:
        """The score from the numbers at all positions."""

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        seen = sum(len(self.raw_map({}, batch)) for batch in batches)
        if not seen:
            raise SignalError(f"{self.method()}: there is no image to fit on")
        return {}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        return self.of_image(self.raw_map(state, signals).flatten(1))

    def raw_map(self, state: State, signals: Signals) -> Float[Tensor, "n *s"]:
        name = f"{self.method()}.map"
        maps = signals[name]
        if maps.ndim < 3 or maps.shape[1] != 1 or 0 in maps.shape[2:]:
            raise SignalError(f"{self.method()}: {name} of shape {tuple(maps.shape)} must be (N, 1, ...) with spatial axes")
        return maps[:, 0]


@dataclass(frozen=True, kw_only=True)
class TopOfMap(MapDetector):
    """Mean of the highest positions.

    Args:
        top: share of the positions whose mean is the image's score; 0 for the highest one alone, 1 for all.
    """

    top: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.top <= 1:
            raise ConfigError(f"{self.method()}: top = {self.top} must lie in [0, 1]")

    def of_image(self, maps: Float[Tensor, "n p"]) -> Float[Tensor, " n"]:
        return mean_of_top(maps, self.top)
