"""Gaussians over the positions of feature maps: where in the image a layer is odd.

Each position has its own mean, all positions of a layer share one covariance; log distances are standardised on held-out
images. (A covariance for each position was no better on synthetic lesions, and is a hundred times larger.) The covariance
rests on all positions of all images, so shrinkage hardly matters and is OAS, which needs no further pass.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import State
from offmap.core.detector import rows as rows_in
from offmap.core.errors import SignalError
from offmap.core.linalg import cholesky, shrunk, unit_norm
from offmap.core.moments import ClassMoments
from offmap.core.types import Signals
from offmap.score._layers import deviations, finest, map_of, on_grid

SMALLEST = 1e-12
"""Least squared distance whose logarithm is taken."""

NARROWEST = 1e-3
"""Least deviation of a log distance."""


@dataclass(frozen=True, eq=False)
class PositionGaussian:
    """One layer's means by position and shared factor.

    Args:
        means: for each position of the grid.
        factor: lower Cholesky factor of the covariance.
    """

    means: Float64[Tensor, "*s c"]
    factor: Float64[Tensor, "c c"]

    def log_distance(self, rows: Float64[Tensor, "n *s c"]) -> Float64[Tensor, "n *s"]:
        """Logarithm of the squared distance at each position."""
        centred = rows.to(self.means) - self.means
        whitened = torch.linalg.solve_triangular(self.factor, centred.flatten(0, -2).T, upper=False)
        logs: Tensor = whitened.square().sum(dim=0).clamp_min(SMALLEST).log()
        return logs.reshape(centred.shape[:-1])


@dataclass(frozen=True)
class MapReader:
    """Takes a layer's map out of a batch, channels last, in float64, on a fixed grid.

    Args:
        sizes: grid of each layer.
        normalise: bring the vector at each position to length one.
        who: method, for messages.
    """

    sizes: Mapping[str, tuple[int, ...]]
    normalise: bool
    who: str

    @classmethod
    def of(cls, signals: Signals, layers: tuple[str, ...], *, normalise: bool, who: str) -> "MapReader":
        """Grids as in this batch, no side above 40."""
        return cls({layer: finest([tuple(map_of(signals, layer, who).shape[2:])]) for layer in layers}, normalise, who)

    def rows(self, signals: Signals, layer: str) -> Float64[Tensor, "n *s c"]:
        """One layer of one batch."""
        rows = on_grid(map_of(signals, layer, self.who), self.sizes[layer]).movedim(1, -1)
        return (unit_norm(rows.float() if rows.dtype != torch.float64 else rows) if self.normalise else rows).double()


def position_state(batches: Iterable[Signals], held_out: Iterable[Signals], reader: MapReader) -> dict[str, Tensor]:
    """Named tensors from which ``position_map`` draws."""
    state: dict[str, Tensor] = {}
    gaussians = _gaussians(batches, reader)
    standards = _standards(held_out, reader, gaussians)
    for i, (layer, gaussian) in enumerate(gaussians.items()):
        prefix = f"map.{i:02d}.{layer}"
        state[f"{prefix}.means"], state[f"{prefix}.factor"] = gaussian.means, gaussian.factor
        state[f"{prefix}.centre"], state[f"{prefix}.spread"] = standards[layer]
    return state


def position_map(state: State, signals: Signals, *, normalise: bool, who: str) -> Float[Tensor, "n *s"]:
    """Mean over layers of the standardised log distance, on the finest grid used."""
    prefixes = sorted(name.removesuffix(".means") for name in state if name.startswith("map.") and name.endswith(".means"))
    gaussians = {p.split(".", 2)[2]: PositionGaussian(state[f"{p}.means"], state[f"{p}.factor"]) for p in prefixes}
    reader = MapReader({layer: tuple(g.means.shape[:-1]) for layer, g in gaussians.items()}, normalise, who)
    size = finest(reader.sizes.values())
    maps = []
    for prefix, (layer, gaussian) in zip(prefixes, gaussians.items(), strict=True):
        rows = reader.rows(signals, layer)
        if rows.shape[-1] != len(gaussian.factor):
            raise SignalError(f"{who}: feature_map.{layer} has {rows.shape[-1]} channels, {len(gaussian.factor)} when it was fitted")
        standard = (gaussian.log_distance(rows) - state[f"{prefix}.centre"]) / state[f"{prefix}.spread"]
        maps.append(on_grid(standard[:, None], size)[:, 0])
    return torch.stack(maps).mean(dim=0)


def _gaussians(batches: Iterable[Signals], reader: MapReader) -> dict[str, PositionGaussian]:
    sums: dict[str, ClassMoments] = {}
    for batch in batches:
        for layer in reader.sizes:
            part = _by_position(reader.rows(batch, layer))
            sums[layer] = sums[layer].merge(part) if layer in sums else part
    out = {}
    for layer, own in sums.items():
        scale = deviations(own.total.diagonal(), own.count, own.mean, f"{reader.who}: feature_map.{layer}")
        scatter = own.within / torch.outer(scale, scale)
        covariance = shrunk(scatter, scatter.new_zeros(()), count=own.count, centres=len(own.labels), kind="oas")
        out[layer] = PositionGaussian(own.means.reshape(*reader.sizes[layer], -1), scale[:, None] * cholesky(covariance))
    return out


def _by_position(rows: Float64[Tensor, "n *s c"]) -> ClassMoments:
    """Sums in which every position is a class of its own."""
    flat = rows.flatten(1, -2)
    count, positions = flat.shape[:2]
    means = flat.mean(dim=0)
    centred = (flat - means).flatten(0, 1)
    counts = torch.full((positions,), float(count), dtype=torch.float64, device=rows.device)
    return ClassMoments(torch.arange(positions, device=rows.device), counts, means, centred.T @ centred)


def _standards(
    held_out: Iterable[Signals], reader: MapReader, gaussians: Mapping[str, PositionGaussian]
) -> dict[str, tuple[Float64[Tensor, "*s"], Float64[Tensor, "*s"]]]:
    """Mean and deviation of each position's log distance over held-out images, both drawn half-way to those of all positions.

    Half-way was best on synthetic lesions in five kinds of images: a quiet background keeps from lighting up, an edge that
    always varies does not.
    """
    sums = {layer: [torch.zeros_like(g.means[..., 0]) for _ in range(2)] for layer, g in gaussians.items()}
    count = 0
    for batch in held_out:
        for layer, gaussian in gaussians.items():
            logs = gaussian.log_distance(reader.rows(batch, layer))
            sums[layer][0] += logs.sum(dim=0)
            sums[layer][1] += logs.square().sum(dim=0)
        count += rows_in(batch)
    out = {}
    for layer, (first, second) in sums.items():
        mean = first / count
        variance = (second / count - mean.square()).clamp_min(0)
        centre = 0.5 * mean + 0.5 * mean.mean()
        overall = (variance + (mean - centre).square()).mean()
        out[layer] = (centre, (0.5 * variance + 0.5 * overall).sqrt().clamp_min(NARROWEST))
    return out
