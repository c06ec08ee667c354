"""What methods share that compare the patches of an image, that is the positions of its feature maps."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from offmap.core.detector import State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.types import Signals
from offmap.score._bank import sampled
from offmap.score._layers import MAX_SIDE, finest, layers_in, map_of, on_grid

SMOOTH: dict[int, Callable[..., Tensor]] = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}

ENOUGH = 10
"""Positions along a side from which on a map is fine enough to stand alone."""


@dataclass(frozen=True)
class PatchReader:
    """Takes the maps of some layers out of a batch, on one grid (at most 40 a side), channels stacked and last.

    Args:
        layers: whose maps.
        widths: channels of each.
        size: of the grid.
        smooth: average each map over 3 neighbours a side first.
        who: method, for messages.
    """

    layers: tuple[str, ...]
    widths: tuple[int, ...]
    size: tuple[int, ...]
    smooth: bool
    who: str

    @classmethod
    def of(cls, signals: Signals, layers: tuple[str, ...], *, smooth: bool, who: str) -> "PatchReader":
        """On the finest grid of these layers in this batch."""
        shapes = [tuple(map_of(signals, layer, who).shape) for layer in layers]
        return cls(layers, tuple(shape[1] for shape in shapes), finest(shape[2:] for shape in shapes), smooth, who)

    @classmethod
    def kept(cls, state: State, *, smooth: bool, who: str) -> "PatchReader":
        """The inverse of ``tensors``."""
        names = sorted(name for name in state if name.startswith("layer."))
        layers, widths = tuple(name.split(".", 2)[2] for name in names), tuple(int(state[name]) for name in names)
        return cls(layers, widths, tuple(min(MAX_SIDE, int(side)) for side in state["size"]), smooth, who)

    def tensors(self) -> dict[str, Tensor]:
        """As kept in a state."""
        named = {f"layer.{i:02d}.{layer}": torch.tensor(self.widths[i]) for i, layer in enumerate(self.layers)}
        return {"size": torch.tensor(self.size), **named}

    def rows(self, signals: Signals) -> Float[Tensor, "n *s c"]:
        """Patches in float32.

        Raises:
            SignalError: a layer is missing, or has other channels than when it was fitted.
        """
        stacked = []
        for layer in self.layers:
            maps = map_of(signals, layer, self.who).float()
            if self.smooth:
                maps = SMOOTH[maps.ndim - 2](maps, kernel_size=3, stride=1, padding=1, count_include_pad=False)
            stacked.append(on_grid(maps, self.size))
        found, expected = sum(part.shape[1] for part in stacked), sum(self.widths)
        if found != expected:
            raise SignalError(f"{self.who}: {found} channels in layers {', '.join(self.layers)}, {expected} when it was fitted")
        return torch.cat(stacked, dim=1).movedim(1, -1)

    def sample(self, batches: Iterable[Signals], most: int, generator: torch.Generator) -> Float[Tensor, "m c"]:
        """A uniform sample of the patches of all batches."""
        return sampled(batches, lambda batch: self.rows(batch).flatten(0, -2), most, generator)


def middle_layers(signals: Signals, named: tuple[str, ...]) -> tuple[str, ...]:
    """The named layers; where none is named the second and third deepest, all where there are fewer than three."""
    found = layers_in(signals, "feature_map", named)
    return found if named or len(found) < 3 else found[-3:-1]


def fine_layer(signals: Signals, named: tuple[str, ...], who: str) -> tuple[str, ...]:
    """The named layers; where none is named the deepest of those with 10 or more positions along each side, or else the finest."""
    found = layers_in(signals, "feature_map", named)
    if named:
        return found
    least = {layer: min(map_of(signals, layer, who).shape[2:]) for layer in found}
    fine = [layer for layer in found if least[layer] >= ENOUGH]
    return (fine[-1],) if fine else (max(reversed(found), key=lambda layer: least[layer]),)


def mean_of_top(maps: Float[Tensor, "n *s"], share: float) -> Float[Tensor, " n"]:
    """Mean of the highest share of the positions, one position at least."""
    flat = maps.flatten(1)
    count = max(1, math.ceil(share * flat.shape[1] - 1e-9))
    return flat.topk(count, dim=1).values.mean(dim=1)


def check_share(top: float, who: str) -> None:
    """Raises:
    ConfigError: the share of positions is not in (0, 1].
    """
    if not 0 < top <= 1:
        raise ConfigError(f"{who}: top = {top} must lie in (0, 1]")
