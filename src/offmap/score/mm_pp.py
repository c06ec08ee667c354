"""One Gaussian over the features of several layers put side by side."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.linalg import Shrinkage, unit_norm
from offmap.core.types import Signals
from offmap.score._gaussian import check_shrinkage, gaussian_state, nearest_class
from offmap.score._layer import rows_of
from offmap.score._layers import layers_in, patterns


@dataclass(frozen=True, kw_only=True)
class MMPP(Detector):
    """MM++: squared Mahalanobis distance of ``[g_1/|g_1|, ..., g_L/|g_L|]``, the features of L layers each of length one.

    The number is a squared distance in standard deviations to the nearest class, or to the mean where there are no labels;
    0 at a class mean. Unlike a sum over layers it sees combinations of layers that do not go together.

    The paper chooses layers by drops of an entropy density; this is the project's simpler form, which takes all layers, or those
    named.

    For D dimensions of all layers together: fitting costs ``N D^2`` (twice through the batches for Ledoit-Wolf), scoring
    ``D^2 / 2 + K D`` an image; the state is ``D^2 + (K + 1) D`` numbers.

    Fails when D is many times N: shrinkage then draws the covariance to a multiple of the identity, and narrow layers
    drown in wide ones. ``multilayer_mahalanobis`` keeps the layers apart.

    Args:
        layers: layers to use; none named: all.
        shrinkage: ``ledoit_wolf`` or ``oas``; both keep the covariance regular when there are fewer images than dimensions.
    """

    layers: tuple[str, ...] = ()
    shrinkage: Shrinkage = "ledoit_wolf"

    reference: ClassVar[str] = (
        "Hossain et al., MM++: Unsupervised Scale-Invariant Multilayer OOD Detection via Top-K Gated Feature Fusion, 2026, "
        "arXiv 2606.17352 (joint features, one tied Ledoit-Wolf Gaussian), without its choice of layers"
    )

    def __post_init__(self) -> None:
        check_shrinkage(self.shrinkage, self.method())

    @property
    def needs(self) -> frozenset[str]:
        return patterns("features", self.layers)

    @property
    def fit_uses(self) -> frozenset[str]:
        return frozenset({"label"})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        first = next(iter(batches))
        widths = {layer: rows_of(first, f"features.{layer}", self.method()).shape[1] for layer in layers_in(first, "features", self.layers)}
        state = gaussian_state(batches, lambda batch: self._vectors(batch, widths), kind=self.shrinkage, who=self.method())
        return {**state, **{f"layer.{i:02d}.{layer}": torch.tensor(width) for i, (layer, width) in enumerate(widths.items())}}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        names = sorted(name for name in state if name.startswith("layer."))
        return nearest_class(state, self._vectors(signals, {name.split(".", 2)[2]: int(state[name]) for name in names}))

    def _vectors(self, signals: Signals, widths: dict[str, int]) -> Float64[Tensor, "n d"]:
        blocks = [unit_norm(rows_of(signals, f"features.{layer}", self.method(), width)) for layer, width in widths.items()]
        return torch.cat(blocks, dim=1)
