"""Mahalanobis distance in every layer, without labels: the default."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar, get_args

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import Localiser, State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.linalg import Shrinkage, Whitener, unit_norm
from offmap.core.neighbours import Reservoir, kth_distance
from offmap.core.types import Signals
from offmap.score._held_out import Share
from offmap.score._layer import rows_of
from offmap.score._layers import layer_whiteners, layers_in, patterns
from offmap.score._positions import MapReader, position_map, position_state
from offmap.score._reductions import NEIGHBOUR, REDUCTIONS, Parts, Reduction, terms

SMALLEST = 1e-12
"""Least squared distance whose logarithm is taken."""

NARROWEST = 1e-3
"""Least deviation of a log distance; reached only where held-out images are copies of each other."""


@dataclass(frozen=True, kw_only=True)
class MultilayerMahalanobis(Localiser):
    """Multi-layer Mahalanobis++: the log distance in each layer, standardised on unseen images, reduced over layers.

    In each layer ``m_l = log (g - mu)^T Sigma^-1 (g - mu)`` of the pooled feature, first brought to length one, then divided
    by each dimension's deviation, with a shrunk covariance. On held-out in-distribution images ``m_l`` is standardised; the
    score is a reduction of these, standardised once more. It reads as standard deviations above the mean of unseen
    in-distribution images: about 0 for a typical one. Shallow layers see scanner, stain and site, deep layers disease.
    No labels and no out-of-distribution data are used. Without ``held_out``, every fourth image of the fit part is kept
    apart for it and takes no part in the Gaussians.

    The map, where fit batches hold ``feature_map.*``: at each position the log distance to that position's mean under
    one covariance a layer, standardised on held-out maps, on the finest grid (at most 40 a side), averaged over layers.

    Fitting costs ``N D^2`` for each layer, twice for Ledoit-Wolf; scoring ``D^2 / 2`` for each layer; the state is
    ``D^2 + D`` numbers for each layer, and ``P C + C^2`` for each map of P positions and C channels.

    The default leaves out the shallowest layer, which sees how a file was made more than what it shows, and takes the
    logarithm of the sum of exponentials over the others; both were chosen on synthetic lesions and corruptions of held-out
    in-distribution images (``docs/benchmarks.md``).

    Fails with the mean when one layer out of many sees the shift, which the others dilute; the maximum takes up noise
    instead. A layer cannot see what its pooled mean and deviation do not change, such as parts in another place.

    Args:
        layers: layers to use, shallow to deep; none named: all but the first ``skip``.
        skip: shallowest layers that are left out where none is named; at least one layer stays.
        normalise: bring features to length one first (Mahalanobis++).
        shrinkage: ``ledoit_wolf`` or ``oas``, for the score; the map's covariances rest on many rows and use ``oas``.
        reduction: ``logsumexp``, ``mean``, ``max``, ``mean_deep`` (mean plus the deepest layer), ``mean_knn`` (mean plus log
            distance to the k-th neighbour in the deepest layer); the two parts of a sum are standardised each.
        k: neighbour for ``mean_knn``.
        max_bank: images kept for ``mean_knn``; a uniform sample of more.
        maps: fit the map as well, where the batches hold feature maps.
    """

    layers: tuple[str, ...] = ()
    normalise: bool = True
    shrinkage: Shrinkage = "ledoit_wolf"
    skip: int = 1
    reduction: Reduction = "logsumexp"
    k: int = 5
    max_bank: int = 10_000
    maps: bool = True

    reference: ClassVar[str] = (
        "Label-free multi-layer form of Lee et al., NeurIPS 2018, arXiv 1807.03888 (section 2.2), on features normalised as in "
        "Mueller & Hein, ICML 2025, arXiv 2505.18032"
    )

    def __post_init__(self) -> None:
        for name, known in (("shrinkage", get_args(Shrinkage)), ("reduction", tuple(REDUCTIONS))):
            if getattr(self, name) not in known:
                raise ConfigError(f"multilayer_mahalanobis: {name} = {getattr(self, name)!r} must be one of {', '.join(known)}")
        if self.skip < 0:
            raise ConfigError(f"multilayer_mahalanobis: skip = {self.skip} must be >= 0")
        if not 1 <= self.k <= self.max_bank:
            raise ConfigError(f"multilayer_mahalanobis: k = {self.k} must lie between 1 and max_bank = {self.max_bank}")

    @property
    def needs(self) -> frozenset[str]:
        return patterns("features", self.layers)

    @property
    def map_needs(self) -> frozenset[str]:
        return patterns("feature_map", self.layers)

    @property
    def fit_uses(self) -> frozenset[str]:
        return self.map_needs if self.maps else frozenset()

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        fit = Share(batches, held=False) if held_out is None else batches
        unseen = Share(batches, held=True) if held_out is None else held_out
        layers = layers_in(next(iter(fit)), "features", self.layers)
        layers = layers if self.layers else layers[min(self.skip, len(layers) - 1) :]
        state: dict[str, Tensor] = {}
        for i, (layer, whitener) in enumerate(layer_whiteners(fit, layers, self._vectors, kind=self.shrinkage, who=self.method()).items()):
            state |= {f"layer.{i:02d}.{layer}.mean": whitener.mean, f"layer.{i:02d}.{layer}.factor": whitener.factor}
        if self.reduction in NEIGHBOUR:
            state["bank"] = self._bank(fit, layers[-1], generator)
        return {**state, **self._standards(state, unseen), **self._map_state(fit, unseen, layers)}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        combined = terms(self.reduction, self._parts(state, signals))
        return ((combined - state["terms.mean"]) / state["terms.spread"]).sum(dim=1)

    def raw_map(self, state: State, signals: Signals) -> Float[Tensor, "n *s"]:
        if not any(name.startswith("map.") for name in state):
            raise ConfigError("multilayer_mahalanobis was fitted without feature maps and has no map; fit it on batches with feature_map.*")
        return position_map(state, signals, normalise=self.normalise, who=self.method())

    def _vectors(self, signals: Signals, layer: str) -> Float64[Tensor, "n d"]:
        rows = rows_of(signals, f"features.{layer}", self.method())
        return unit_norm(rows) if self.normalise else rows

    def _bank(self, batches: Iterable[Signals], layer: str, generator: torch.Generator) -> Float[Tensor, "m d"]:
        parts = [unit_norm(rows_of(batch, f"features.{layer}", self.method())).float() for batch in batches]
        sample = reduce(lambda kept, rows: kept.add(rows, generator), parts, Reservoir.empty(self.max_bank, parts[0]))
        if self.k > len(sample.rows):
            raise SignalError(f"multilayer_mahalanobis: k = {self.k} is more than the {len(sample.rows)} images to fit on")
        return sample.rows

    def _raw(self, state: State, signals: Signals) -> Float64[Tensor, "n p"]:
        """Log distance of each layer, and of the k-th neighbour (zero where it is not used)."""
        columns = []
        prefixes = sorted(name.removesuffix(".mean") for name in state if name.startswith("layer.") and name.endswith(".mean"))
        for prefix in prefixes:
            whitener, layer = Whitener(state[f"{prefix}.mean"], state[f"{prefix}.factor"]), prefix.split(".", 2)[2]
            rows_of(signals, f"features.{layer}", self.method(), len(whitener.mean))
            columns.append(whitener.squared(self._vectors(signals, layer)).clamp_min(SMALLEST).log())
        near = torch.zeros_like(columns[0])
        if "bank" in state:
            deepest = unit_norm(rows_of(signals, f"features.{prefixes[-1].split('.', 2)[2]}", self.method())).float()
            near = kth_distance(deepest, state["bank"], self.k).to(near).clamp_min(SMALLEST**0.5).log()
        return torch.stack([*columns, near], dim=1)

    def _parts(self, state: State, signals: Signals) -> Parts:
        standard = (self._raw(state, signals) - state["parts.mean"]) / state["parts.spread"]
        return Parts(standard[:, :-1], standard[:, -1])

    def _standards(self, state: State, unseen: Iterable[Signals]) -> dict[str, Tensor]:
        """Mean and deviation of the parts, and of the terms made from them, over held-out images."""
        raw = [self._raw(state, batch) for batch in unseen]
        count = sum(map(len, raw))
        if count < 2:
            raise SignalError(
                f"multilayer_mahalanobis has {count} held-out images and needs at least 2: "
                "give more in held_out, or none and at least 8 images to fit on"
            )
        values = torch.cat(raw)
        mean, spread = values.mean(dim=0), values.std(dim=0).clamp_min(NARROWEST)
        standard = (values - mean) / spread
        combined = terms(self.reduction, Parts(standard[:, :-1], standard[:, -1]))
        return {
            "parts.mean": mean,
            "parts.spread": spread,
            "terms.mean": combined.mean(dim=0),
            "terms.spread": combined.std(dim=0).clamp_min(NARROWEST),
        }

    def _map_state(self, fit: Iterable[Signals], unseen: Iterable[Signals], layers: tuple[str, ...]) -> dict[str, Tensor]:
        first = next(iter(fit))
        mapped = tuple(layer for layer in layers if f"feature_map.{layer}" in first)
        if not self.maps or not mapped:
            return {}
        reader = MapReader.of(first, mapped, normalise=self.normalise, who=self.method())
        return position_state(fit, unseen, reader)
