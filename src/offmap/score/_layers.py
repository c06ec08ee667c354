"""What methods over several layers share: which layers, one grid for their maps, and a whitener for each."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
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

Scale = Literal["dimension", "layer"]
"""Whether each dimension is divided by its own deviation, or all of a layer by their root mean square deviation."""

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
    scale: Scale = "dimension",
) -> dict[str, Whitener]:
    """For each layer: take the mean off, divide by the deviation, shrink, factor.

    Ledoit-Wolf reads the batches a second time, since it needs the fourth moments of standardised rows.

    Raises:
        SignalError: a layer does not vary.
    """
    found = group_whiteners(batches, [(layer,) for layer in layers], rows, kind=kind, who=who, scale=scale)
    return dict(zip(layers, found, strict=True))


def group_whiteners(
    batches: Iterable[Signals],
    groups: Sequence[tuple[str, ...]],
    rows: Callable[[Signals, str], Float64[Tensor, "n d"]],
    *,
    kind: Shrinkage,
    who: str,
    scale: Scale,
) -> list[Whitener]:
    """As ``layer_whiteners``, one for each group of layers put side by side.

    Raises:
        SignalError: a layer does not vary.
    """

    def joined(batch: Signals, group: tuple[str, ...]) -> Float64[Tensor, "n d"]:
        return torch.cat([rows(batch, layer) for layer in group], dim=1)

    sums: dict[tuple[str, ...], Moments] = {}
    widths: dict[str, int] = {}
    for batch in batches:
        widths = widths or {layer: rows(batch, layer).shape[1] for group in groups for layer in group}
        for group in groups:
            part = Moments.of(joined(batch, group))
            sums[group] = sums[group].merge(part) if group in sums else part
    scales = {group: _scales(sums[group], {layer: widths[layer] for layer in group}, scale, who) for group in groups}
    fourth = {group: torch.zeros_like(sums[group].quartic) for group in groups}
    for batch in batches if kind == "ledoit_wolf" else ():
        for group in groups:
            fourth[group] += quartic((joined(batch, group) - sums[group].mean) / scales[group])
    out = []
    for group, by in scales.items():
        covariance = shrunk(sums[group].scatter / torch.outer(by, by), fourth[group], count=sums[group].count, kind=kind)
        out.append(Whitener(sums[group].mean, by[:, None] * cholesky(covariance)))
    return out


def _scales(total: Moments, widths: dict[str, int], scale: Scale, who: str) -> Float64[Tensor, " d"]:
    """What each dimension of layers put side by side is divided by."""
    parts = []
    blocks = (block.split(list(widths.values())) for block in (total.scatter.diagonal(), total.mean))
    for layer, squares, mean in zip(widths, *blocks, strict=True):
        each = deviations(squares, total.count, mean, f"{who}: features.{layer}")
        parts.append(each if scale == "dimension" else each.square().mean().sqrt().expand_as(each))
    return torch.cat(parts)


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


def entropy_density(whitener: Whitener) -> float:
    """Entropy per dimension of standardised features under a Gaussian, up to a constant; 0 where all are independent.

    ``1/(2D) log det`` of the correlation matrix: ``log det = 2 sum log diag(F)``, and row i of ``F`` has the length of deviation i.
    """
    lengths = torch.linalg.vector_norm(whitener.factor, dim=1)
    return float((whitener.factor.diagonal().log() - lengths.log()).mean())


def drops(densities: Mapping[str, float]) -> tuple[str, ...]:
    """Layers whose entropy density is below that of the layer before; the deepest where there is none."""
    names = list(densities)
    found = tuple(b for a, b in itertools.pairwise(names) if densities[b] < densities[a])
    return found or (names[-1],)
