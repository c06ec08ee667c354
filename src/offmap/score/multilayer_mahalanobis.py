"""Mahalanobis distance in every layer, without labels: the default."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar, Literal, get_args

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
from offmap.score._layers import Scale, drops, entropy_density, group_whiteners, layer_whiteners, layers_in, patterns
from offmap.score._positions import MapReader, position_map, position_state
from offmap.score._reductions import NEIGHBOUR, REDUCTIONS, TAILS, Parts, Reduction, Tails, terms

SMALLEST = 1e-12
"""Least squared distance whose logarithm is taken."""

Choice = Literal["depth", "entropy"]
"""How layers are chosen where none is named."""

NARROWEST = 1e-3
"""Least deviation of a log distance; reached only where held-out images are copies of each other."""


@dataclass(frozen=True, kw_only=True)
class MultilayerMahalanobis(Localiser):
    """Multi-layer Mahalanobis++: log distance in each layer given the shallower ones, standardised on unseen images, reduced over layers.

    The pooled features of all layers, each brought to length one and divided by its root mean square deviation, are put side by
    side, shallow to deep: x. With one shrunk covariance ``L L^T`` (L lower triangular) ``m_l = log |block l of L^-1 (x - mu)|^2``. By
    the chain rule of the Gaussian this is the distance of layer l from what the shallower layers lead one to expect, so a change
    that goes through all layers is counted once. On held-out in-distribution images ``m_l`` is standardised; the score is a
    reduction of these, standardised once more. It reads as standard deviations above the mean of unseen in-distribution
    images: about 0 for a typical one. Shallow layers see scanner, stain and site, deep layers disease. No labels and no
    out-of-distribution data are used. Without ``held_out``, every fourth image of the fit part is kept apart for it and takes no
    part in the Gaussian. Not ``conditional``: ``m_l = log (g - mu)^T Sigma^-1 (g - mu)`` of each layer by itself.

    The map, where fit batches hold ``feature_map.*``: at each position the log distance to that position's mean under
    one covariance a layer, standardised on held-out maps, on the finest grid (at most 40 a side), averaged over layers.

    For D dimensions of all layers together: fitting costs ``N D^2``, and ``D^3 / 3`` for the factor; scoring ``D^2 / 2``; the state is
    ``D^2 + D`` numbers, and ``P C + C^2`` for each map of P positions and C channels. Not conditional, the same for each layer.

    The default counts all layers but the shallowest, which sees how a file was made more than what it shows, and takes their mean.
    Both, and that layers are conditional and scaled as a whole, were chosen on synthetic lesions, sites, corruptions and left-out clusters
    of in-distribution images (``docs/benchmarks.md``).

    Fails with the mean when one layer out of many sees the shift, which the others dilute; the maximum takes up noise
    instead. With far fewer images than dimensions the covariance shrinks to the identity, and what a layer shares with the shallower
    ones is counted again. A layer cannot see what its pooled mean and deviation do not change, such as parts in another place.

    Args:
        layers: layers to use, shallow to deep, and no others; none named: as ``choose`` says, given all shallower layers.
        choose: where no layer is named, ``depth`` leaves out the first ``skip``; ``entropy`` takes those whose entropy per dimension
            is below that of the layer before (the deepest, where there is none); of standardised features, unlike in ``mm_pp``.
        skip: shallowest layers that are left out; at least one layer stays.
        conditional: each layer given the shallower ones, else each layer by itself.
        normalise: bring features to length one first (Mahalanobis++).
        scale: divide each ``dimension`` by its own deviation, or all of a ``layer`` by one number, before the covariance is shrunk.
        shrinkage: ``ledoit_wolf`` or ``oas``, for the score; the map's covariances rest on many rows and use ``oas``.
        reduction: ``mean``, ``logsumexp``, ``max``, ``mean_deep`` (mean plus the deepest layer), ``mean_knn`` (mean plus log
            distance to the k-th neighbour in the deepest layer), ``fisher`` (``-sum ln p``); the two parts of a sum are standardised each.
        k: neighbour for ``mean_knn``.
        max_bank: images kept for ``mean_knn``; a uniform sample of more.
        maps: fit the map as well, where the batches hold feature maps.
    """

    layers: tuple[str, ...] = ()
    normalise: bool = True
    shrinkage: Shrinkage = "ledoit_wolf"
    choose: Choice = "depth"
    skip: int = 1
    conditional: bool = True
    scale: Scale = "layer"
    reduction: Reduction = "mean"
    k: int = 5
    max_bank: int = 10_000
    maps: bool = True

    reference: ClassVar[str] = (
        "Label-free multi-layer form of Lee et al., NeurIPS 2018, arXiv 1807.03888 (section 2.2), on features normalised as in "
        "Mueller & Hein, ICML 2025, arXiv 2505.18032; one joint Gaussian as in Hossain et al., 2026, arXiv 2606.17352, taken apart by layer"
    )

    def __post_init__(self) -> None:
        choices = {"shrinkage": get_args(Shrinkage), "reduction": tuple(REDUCTIONS), "choose": get_args(Choice), "scale": get_args(Scale)}
        for name, known in choices.items():
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
        every = layers_in(next(iter(fit)), "features", self.layers)
        layers = self._chosen(fit, every)
        state = self._gaussians(fit, every, layers)
        if self.reduction in NEIGHBOUR:
            state["bank"] = self._bank(fit, layers[-1], generator)
        return {**state, **self._standards(state, unseen), **self._map_state(fit, unseen, layers)}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        combined = terms(self.reduction, self.parts(state, signals))
        return ((combined - state["terms.mean"]) / state["terms.spread"]).sum(dim=1)

    def raw_map(self, state: State, signals: Signals) -> Float[Tensor, "n *s"]:
        if not any(name.startswith("map.") for name in state):
            raise ConfigError("multilayer_mahalanobis was fitted without feature maps and has no map; fit it on batches with feature_map.*")
        return position_map(state, signals, normalise=self.normalise, who=self.method())

    def _chosen(self, fit: Iterable[Signals], every: tuple[str, ...]) -> tuple[str, ...]:
        """Layers whose distances are counted."""
        if self.layers:
            return every
        if self.choose == "depth":
            return every[min(self.skip, len(every) - 1) :]
        found = layer_whiteners(fit, every, self._vectors, kind=self.shrinkage, who=self.method())
        return drops({layer: entropy_density(whitener) for layer, whitener in found.items()})

    def _gaussians(self, fit: Iterable[Signals], every: tuple[str, ...], counted: tuple[str, ...]) -> dict[str, Tensor]:
        """One Gaussian a counted layer; where conditional, one for all layers and each layer's width, negative where it is not counted."""
        groups = [every] if self.conditional else [(layer,) for layer in counted]
        found = group_whiteners(fit, groups, self._vectors, kind=self.shrinkage, who=self.method(), scale=self.scale)
        if not self.conditional:
            names = [f"layer.{i:02d}.{layer}" for i, layer in enumerate(counted)]
            return {f"{n}.{part}": getattr(w, part) for n, w in zip(names, found, strict=True) for part in ("mean", "factor")}
        first = next(iter(fit))
        widths = {layer: rows_of(first, f"features.{layer}", self.method()).shape[1] for layer in every}
        signed = {layer: width if layer in counted else -width for layer, width in widths.items()}
        blocks = {f"block.{i:02d}.{layer}": torch.tensor(width) for i, (layer, width) in enumerate(signed.items())}
        return {"joint.mean": found[0].mean, "joint.factor": found[0].factor, **blocks}

    def _vectors(self, signals: Signals, layer: str) -> Float64[Tensor, "n d"]:
        rows = rows_of(signals, f"features.{layer}", self.method())
        return unit_norm(rows) if self.normalise else rows

    def _bank(self, batches: Iterable[Signals], layer: str, generator: torch.Generator) -> Float[Tensor, "m d"]:
        parts = [unit_norm(rows_of(batch, f"features.{layer}", self.method())).float() for batch in batches]
        sample = reduce(lambda kept, rows: kept.add(rows, generator), parts, Reservoir.empty(self.max_bank, parts[0]))
        if self.k > len(sample.rows):
            raise SignalError(f"multilayer_mahalanobis: k = {self.k} is more than the {len(sample.rows)} images to fit on")
        return sample.rows

    def _squared(self, state: State, signals: Signals) -> dict[str, Float64[Tensor, " n"]]:
        """Squared distance in each counted layer, shallow to deep."""
        if "joint.factor" in state:
            return self._given_shallower(state, signals)
        found = {}
        for prefix in sorted(name.removesuffix(".mean") for name in state if name.startswith("layer.") and name.endswith(".mean")):
            whitener, layer = Whitener(state[f"{prefix}.mean"], state[f"{prefix}.factor"]), prefix.split(".", 2)[2]
            rows_of(signals, f"features.{layer}", self.method(), len(whitener.mean))
            found[layer] = whitener.squared(self._vectors(signals, layer))
        return found

    def _given_shallower(self, state: State, signals: Signals) -> dict[str, Float64[Tensor, " n"]]:
        """Blocks of ``L^-1 (x - mean)``: L is lower triangular, so each block is what the blocks before it do not explain."""
        widths = {name.split(".", 2)[2]: int(state[name]) for name in sorted(name for name in state if name.startswith("block."))}
        for layer, width in widths.items():
            rows_of(signals, f"features.{layer}", self.method(), abs(width))
        whitener = Whitener(state["joint.mean"], state["joint.factor"])
        squares = whitener.whiten(torch.cat([self._vectors(signals, layer) for layer in widths], dim=1)).square()
        blocks = squares.split([abs(width) for width in widths.values()], dim=1)
        return {layer: block.sum(dim=1) for (layer, width), block in zip(widths.items(), blocks, strict=True) if width > 0}

    def _raw(self, state: State, signals: Signals) -> Float64[Tensor, "n p"]:
        """Log distance of each counted layer, and of the k-th neighbour (zero where it is not used)."""
        squared = self._squared(state, signals)
        columns = [value.clamp_min(SMALLEST).log() for value in squared.values()]
        near = torch.zeros_like(columns[0])
        if "bank" in state:
            deepest = unit_norm(rows_of(signals, f"features.{list(squared)[-1]}", self.method())).float()
            near = kth_distance(deepest, state["bank"], self.k).to(near).clamp_min(SMALLEST**0.5).log()
        return torch.stack([*columns, near], dim=1)

    def parts(self, state: State, signals: Signals) -> Parts:
        """What the reduction combines: log distance of each counted layer, standardised on held-out images."""
        standard = (self._raw(state, signals) - state["parts.mean"]) / state["parts.spread"]
        layers, near = standard[:, :-1], standard[:, -1]
        return Parts(layers, near, Tails(state["tails.held"], state["tails.excess"]).of_unseen(layers) if "tails.held" in state else None)

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
        layers, near = standard[:, :-1], standard[:, -1]
        tails = Tails.of(layers) if self.reduction in TAILS else None
        combined = terms(self.reduction, Parts(layers, near, tails.of_held(layers) if tails else None))
        return {
            **({"tails.held": tails.held, "tails.excess": tails.excess} if tails else {}),
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
