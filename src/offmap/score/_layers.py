"""What methods over several layers share: which layers, one grid for their maps, and a whitener for each."""

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional

from offmap.core.detector import select
from offmap.core.errors import SignalError
from offmap.core.linalg import Shrinkage, Whitener, cholesky, shrunk
from offmap.core.moments import Moments, quartic
from offmap.core.types import Signals

Kind = Literal["features", "feature_map", "nac"]

MAX_SIDE = 40
"""Maps with a longer side are pooled to it, to bound memory."""

FLOOR = 1e-2
"""Least deviation of a dimension, as a share of the root mean square deviation of its layer; a dead channel stays harmless."""

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}
POOLS: dict[int, Callable[[Tensor, tuple[int, ...]], Tensor]] = {
    1: functional.adaptive_avg_pool1d,
    2: functional.adaptive_avg_pool2d,  # type: ignore[dict-item]
    3: functional.adaptive_avg_pool3d,  # type: ignore[dict-item]
}


def patterns(kind: Kind, layers: tuple[str, ...]) -> frozenset[str]:
    """Signals to ask for: those of the named layers, or of every layer where none is named."""
    return frozenset({f"{kind}.{layer}" for layer in layers} or {f"{kind}.*"})


def layers_in(signals: Signals, kind: Kind, layers: tuple[str, ...]) -> tuple[str, ...]:
    """The named layers, or every layer of the batch in the order in which the encoder gives them (shallow to deep)."""
    return layers or tuple(name.removeprefix(f"{kind}.") for name in select(signals, f"{kind}.*"))


def finest(sizes: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """The largest of several grids, no side above ``MAX_SIDE``."""
    return tuple(min(MAX_SIDE, max(sides)) for sides in zip(*sizes, strict=True))


def on_grid(maps: Float[Tensor, "n c *s"], size: tuple[int, ...]) -> Float[Tensor, "n c *t"]:
    """Pooled where the grid is coarser, interpolated linearly where it is finer."""
    have = tuple(maps.shape[2:])
    smaller = tuple(min(a, b) for a, b in zip(have, size, strict=True))
    if smaller != have:
        maps = POOLS[len(size)](maps, smaller)
    return maps if smaller == size else functional.interpolate(maps, size=size, mode=MODES[len(size)], align_corners=False)


def map_of(signals: Signals, layer: str, who: str) -> Float[Tensor, "n c *s"]:
    """A feature map with one to three spatial axes.

    Raises:
        SignalError: it has another shape.
    """
    if f"feature_map.{layer}" not in signals:
        raise SignalError(f"{who} was fitted on feature_map.{layer}; the batch has {', '.join(sorted(signals))}")
    maps = signals[f"feature_map.{layer}"]
    if not 3 <= maps.ndim <= 5 or 0 in maps.shape[1:]:
        raise SignalError(f"{who}: feature_map.{layer} of shape {tuple(maps.shape)} must be (N, C, ...) with one to three spatial axes")
    return maps


def layer_whiteners(
    batches: Iterable[Signals],
    layers: tuple[str, ...],
    rows: Callable[[Signals, str], Float64[Tensor, "n d"]],
    *,
    kind: Shrinkage,
    who: str,
) -> dict[str, Whitener]:
    """For each layer: take the mean off, divide by the deviation of each dimension, shrink, factor.

    Ledoit-Wolf reads the batches a second time, since it needs the fourth moments of standardised rows.

    Raises:
        SignalError: a layer does not vary.
    """
    sums: dict[str, Moments] = {}
    for batch in batches:
        for layer in layers:
            part = Moments.of(rows(batch, layer))
            sums[layer] = sums[layer].merge(part) if layer in sums else part
    scales = {name: deviations(s.scatter.diagonal(), s.count, s.mean, f"{who}: features.{name}") for name, s in sums.items()}
    fourth = {layer: torch.zeros_like(sums[layer].quartic) for layer in layers}
    for batch in batches if kind == "ledoit_wolf" else ():
        for layer in layers:
            fourth[layer] += quartic((rows(batch, layer) - sums[layer].mean) / scales[layer])
    out = {}
    for layer, scale in scales.items():
        covariance = shrunk(sums[layer].scatter / torch.outer(scale, scale), fourth[layer], count=sums[layer].count, kind=kind)
        out[layer] = Whitener(sums[layer].mean, scale[:, None] * cholesky(covariance))
    return out


def deviations(squares: Float64[Tensor, " d"], count: int, mean: Float64[Tensor, " d"], what: str) -> Float64[Tensor, " d"]:
    """Standard deviation of each dimension, floored.

    Args:
        squares: sum over the rows of the squared difference to the mean.
        count: number of rows.
        mean: of the rows.
        what: signal, for the message.

    Raises:
        SignalError: no dimension varies beyond rounding.
    """
    variance = squares / max(1, count - 1)
    overall = variance.mean()
    if not float(overall) > 1e-24 * float(mean.square().mean()):
        raise SignalError(f"{what} does not vary over {count} rows: at least two different images are needed")
    return torch.maximum(variance.sqrt(), FLOOR * overall.sqrt())
