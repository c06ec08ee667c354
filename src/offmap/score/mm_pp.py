"""One Gaussian over the features of several layers put side by side."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.linalg import Shrinkage, shrunk, unit_norm
from offmap.core.types import Signals
from offmap.score._gaussian import check_shrinkage, gaussian_state, nearest_class
from offmap.score._layer import rows_of
from offmap.score._layers import layers_in, patterns
from offmap.score._subspace import total_moments

Choice = Literal["all", "entropy"]

TINY = 1e-12
"""Least variance of a direction in the entropy: where the covariance is singular, rounding does not decide."""


@dataclass(frozen=True, kw_only=True)
class MMPP(Detector):
    """MM++: squared Mahalanobis distance of ``[g_1/|g_1|, ..., g_L/|g_L|]``, the features of L layers each of length one.

    The number is a squared distance in standard deviations to the nearest class, or to the mean where there are no labels;
    0 at a class mean. Unlike a sum over layers it sees combinations of layers that do not go together.

    The paper chooses layers without labels, by drops of an entropy density, and its rule was not public when this was written.
    ``choose = "all"`` takes all layers, or those named. ``choose = "entropy"`` takes of them, in their order from shallow to deep,
    each at which the entropy density is lower than at the one before, and all where there is no such layer; the first has none
    before it and is left out. This rule is the project's: the density of a layer is the entropy of a Gaussian with the shrunk
    covariance of ``sqrt(D) g/|g|``, divided by D: ``0.5 mean_j ln(2 pi e v_j)`` over the eigenvalues v, at most 1.42 nats, lower the
    fewer directions images vary in.

    For D dimensions of all layers together: fitting costs ``N D^2`` (twice through the batches for Ledoit-Wolf), scoring
    ``D^2 / 2 + K D`` an image; the state is ``D^2 + (K + 1) D`` numbers. ``entropy`` adds ``D^3`` of each layer to the fit.

    Fails when D is many times N: shrinkage then draws the covariance to a multiple of the identity, and narrow layers
    drown in wide ones. ``multilayer_mahalanobis`` keeps the layers apart.

    Args:
        layers: layers to use, or to choose from; none named: all.
        choose: ``all`` or ``entropy``.
        shrinkage: ``ledoit_wolf`` or ``oas``; both keep the covariance regular when there are fewer images than dimensions.
    """

    layers: tuple[str, ...] = ()
    choose: Choice = "all"
    shrinkage: Shrinkage = "ledoit_wolf"

    reference: ClassVar[str] = (
        "Hossain et al., MM++: Unsupervised Scale-Invariant Multilayer OOD Detection via Top-K Gated Feature Fusion, 2026, "
        "arXiv 2606.17352 (joint features, one tied Ledoit-Wolf Gaussian); the choice of layers is the project's"
    )

    def __post_init__(self) -> None:
        check_shrinkage(self.shrinkage, self.method())
        if self.choose not in get_args(Choice):
            raise ConfigError(f"mm_pp: choose = {self.choose!r} must be one of {', '.join(get_args(Choice))}")

    @property
    def needs(self) -> frozenset[str]:
        return patterns("features", self.layers)

    @property
    def fit_uses(self) -> frozenset[str]:
        return frozenset({"label"})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        first = next(iter(batches))
        names = layers_in(first, "features", self.layers)
        if self.choose == "entropy":
            names = dropping(names, [self._density(batches, layer) for layer in names])
        widths = {layer: rows_of(first, f"features.{layer}", self.method()).shape[1] for layer in names}
        state = gaussian_state(batches, lambda batch: self._vectors(batch, widths), kind=self.shrinkage, who=self.method())
        return {**state, **{f"layer.{i:02d}.{layer}": torch.tensor(width) for i, (layer, width) in enumerate(widths.items())}}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        names = sorted(name for name in state if name.startswith("layer."))
        return nearest_class(state, self._vectors(signals, {name.split(".", 2)[2]: int(state[name]) for name in names}))

    def _vectors(self, signals: Signals, widths: dict[str, int]) -> Float64[Tensor, "n d"]:
        blocks = [unit_norm(rows_of(signals, f"features.{layer}", self.method(), width)) for layer, width in widths.items()]
        return torch.cat(blocks, dim=1)

    def _density(self, batches: Iterable[Signals], layer: str) -> float:
        """Gaussian entropy of a layer for each of its dimensions, in nats."""

        def rows(batch: Signals) -> Float64[Tensor, "n d"]:
            given = rows_of(batch, f"features.{layer}", "mm_pp")
            return math.sqrt(given.shape[1]) * unit_norm(given)

        total = total_moments(batches, rows)
        try:
            level = float(total.mean.square().sum())
            covariance = shrunk(total.scatter, total.quartic, count=total.count, level=level, kind=self.shrinkage)
        except SignalError as error:
            raise SignalError(f"mm_pp: features.{layer}: {error}") from error
        variances: Tensor = torch.linalg.eigvalsh(covariance)
        return 0.5 * float((2 * math.pi * math.e * variances.clamp_min(TINY)).log().mean())


def dropping(layers: Sequence[str], densities: Sequence[float]) -> tuple[str, ...]:
    """Layers whose density is lower than that of the layer before; all where none is."""
    lower = (name for name, before, own in zip(layers[1:], densities[:-1], densities[1:], strict=True) if own < before)
    return tuple(lower) or tuple(layers)
