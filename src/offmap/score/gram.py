"""Correlations between the channels of feature maps, against the range seen in-distribution."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.types import Signals
from offmap.score._held_out import Share
from offmap.score._layer import rows_of
from offmap.score._layers import FLOOR, finest, layers_in, map_of, on_grid, patterns

CACHED = 16
"""Images at a time, so that the powers of their maps stay in the cache."""


@dataclass(frozen=True, kw_only=True)
class Gram(Detector):
    """Gram: how far the channel correlations of a layer leave their in-distribution range, ``sum_l delta_l / E[delta_l]``.

    For powers p = 1 ... P, ``g_pc = (sum_{c',x} F_c(x)^p F_c'(x)^p)^(1/p)`` with the sign kept; ``delta_l`` sums ``relu(min - g)/|min| +
    relu(g - max)/|max|`` over p and channels c of a layer, min and max over the fit part. E is over held-out in-distribution
    images, so the number is about L, the number of layers, on average, and 0 for an image inside the range everywhere. Bounds below
    1 % of a layer's mean bound count as 1 %, so that dead channels stay harmless.

    With ``per_class`` the range is that of the predicted class, as in the paper, and needs logits; a class never predicted in the
    fit part has that of all images. Otherwise there is one range. The sum is taken before the root, as in the authors' code; maps are
    pooled to at most 40 a side.

    Fitting and scoring cost ``P C S`` for each layer of C channels and S positions; the state is ``2 P C`` numbers for each layer and
    class. Without ``held_out``, every fourth image is kept apart and takes no part in the ranges.

    Fails as the fit part grows: min and max are ruled by its oddest image and only widen. Images inside all ranges tie at 0.

    Args:
        layers: layers to use; none named: all that have maps.
        powers: P, 1 ... 10.
        per_class: a range for each predicted class.
    """

    layers: tuple[str, ...] = ()
    powers: int = 5
    per_class: bool = False

    reference: ClassVar[str] = (
        "Sastry & Oore, Detecting Out-of-Distribution Examples with Gram Matrices, ICML 2020, arXiv 1912.12510, eq. 3-6"
    )

    def __post_init__(self) -> None:
        if not 1 <= self.powers <= 10:
            raise ConfigError(f"gram: powers = {self.powers} must lie between 1 and 10")

    @property
    def needs(self) -> frozenset[str]:
        return patterns("feature_map", self.layers) | ({"logits"} if self.per_class else frozenset())

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        fit = Share(batches, held=False) if held_out is None else batches
        unseen = Share(batches, held=True) if held_out is None else held_out
        first = next(iter(fit))
        classes = rows_of(first, "logits", "gram").shape[1] if self.per_class else 1
        state: dict[str, Tensor] = {"classes": torch.tensor(classes)}
        for i, layer in enumerate(layers_in(first, "feature_map", self.layers)):
            low, high = self._range(fit, layer, classes)
            state |= {f"layer.{i:02d}.{layer}.low": low, f"layer.{i:02d}.{layer}.high": high}
        parts = [self._deviations(state, batch) for batch in unseen]
        if not parts:
            raise SignalError("gram has no held-out image to scale on: give some in held_out, or at least 4 images to fit on")
        expected = torch.cat(parts).mean(dim=0)
        positive = expected[expected > 0]
        return {**state, "expected": expected.clamp_min(float(positive.min()) if len(positive) else 1.0)}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        return (self._deviations(state, signals) / state["expected"]).sum(dim=1)

    def _range(self, batches: Iterable[Signals], layer: str, classes: int) -> tuple[Float64[Tensor, "k p c"], Float64[Tensor, "k p c"]]:
        """Least and largest value for each class; of all images where the class was never predicted."""
        low = high = torch.empty(0)
        for i, batch in enumerate(batches):
            values, which = correlations(map_of(batch, layer, "gram"), self.powers), self._predicted(batch, classes)
            if i == 0:
                low = values.new_full((classes, *values.shape[1:]), torch.inf)
                high = -low
            index = which[:, None, None].expand_as(values)
            low = low.scatter_reduce(0, index, values, "amin")
            high = high.scatter_reduce(0, index, values, "amax")
        seen = torch.isfinite(low)
        return torch.where(seen, low, low.amin(dim=0)), torch.where(seen, high, high.amax(dim=0))

    def _predicted(self, signals: Signals, classes: int) -> Int64[Tensor, " n"]:
        if self.per_class:
            return rows_of(signals, "logits", "gram", classes).argmax(dim=1)
        first = next(value for name, value in signals.items() if name.startswith("feature_map."))
        return torch.zeros(len(first), dtype=torch.int64, device=first.device)

    def _deviations(self, state: State, signals: Signals) -> Float64[Tensor, "n l"]:
        """How far each layer leaves its range."""
        which, columns = self._predicted(signals, int(state["classes"])), []
        for prefix in sorted(name.removesuffix(".low") for name in state if name.endswith(".low")):
            low, high, maps = state[f"{prefix}.low"], state[f"{prefix}.high"], map_of(signals, prefix.split(".", 2)[2], "gram")
            if maps.shape[1] != low.shape[2]:
                raise SignalError(f"gram: {prefix.split('.', 2)[2]} has {maps.shape[1]} channels, {low.shape[2]} when it was fitted")
            values = correlations(maps, self.powers)
            under = (low[which] - values).clamp_min(0) / _size(low)[which]
            over = (values - high[which]).clamp_min(0) / _size(high)[which]
            columns.append((under + over).sum(dim=(1, 2)))
        return torch.stack(columns, dim=1)


def correlations(maps: Float[Tensor, "n c *s"], powers: int) -> Float64[Tensor, "n p c"]:
    """Row sums of the Gram matrices of the p-th powers, p-th root with the sign kept; maps with a side above 40 are pooled to it.

    In the precision of the maps, each image divided by its largest value, so that the tenth power of none overflows.
    """
    size = finest([tuple(maps.shape[2:])])
    return torch.cat([_correlations(on_grid(part, size), powers) for part in maps.split(CACHED)])


def _correlations(maps: Float[Tensor, "n c *s"], powers: int) -> Float64[Tensor, "n p c"]:
    given = maps if maps.dtype == torch.float64 else maps.float()
    flat = given.movedim(1, -1).flatten(1, -2)
    size = flat.abs().amax(dim=(1, 2), keepdim=True).clamp_min(1e-30)
    flat = flat / size
    rows, raised = [], flat.clone()
    for power in range(1, powers + 1):
        raised = raised if power == 1 else raised.mul_(flat)
        sums = torch.bmm(raised.sum(dim=2)[:, None], raised)[:, 0].double()
        rows.append(sums.sign() * sums.abs().pow(1 / power) * size[:, 0].double().square())
    return torch.stack(rows, dim=1)


def _size(bound: Float64[Tensor, "k p c"]) -> Float64[Tensor, "k p c"]:
    """Magnitude of the bounds, floored at 1 % of the mean over channels."""
    size = bound.abs()
    return torch.maximum(size, FLOOR * size.mean(dim=2, keepdim=True)).clamp_min(1e-12)
