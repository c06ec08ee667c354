"""PatchCore: distance of every patch to a core-set of in-distribution patches."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from offmap.core.detector import Localiser, State
from offmap.core.errors import ConfigError
from offmap.core.neighbours import k_center, k_nearest
from offmap.core.types import Signals
from offmap.score._layers import patterns
from offmap.score._patches import PatchReader, middle_layers


@dataclass(frozen=True, kw_only=True)
class PatchCore(Localiser):
    """PatchCore: the largest distance of a patch to the nearest of a core-set of in-distribution patches, >= 0.

    A patch is a position of the chosen feature maps, each averaged over 3 neighbours a side and brought to the finest of their
    grids (at most 40 a side), channels stacked. The map holds the distance at each position, in units of the features.

    Fitting draws ``pool`` patches and takes ``max_bank`` of them by greedy k-center on random projections, at
    ``pool * max_bank * projection`` steps; scoring costs ``max_bank * C`` for each position; the state is
    ``max_bank * C`` numbers in float32, whatever the number of images.

    Fails when parts are usual and only their place is odd: positions are forgotten. One odd pixel of the background, such as
    a burned-in letter, suffices for a high score.

    Args:
        layers: layers to use; none named: the second and third deepest (all, where there are fewer than three).
        max_bank: patches in the core-set.
        pool: patches to choose it from; a uniform sample of all.
        projection: dimensions of the random projection on which the core-set is chosen.
        reweight: neighbours b for the paper's reweighting of the image's score (eq. 7), b >= 2; 0 for none.
    """

    layers: tuple[str, ...] = ()
    max_bank: int = 2_000
    pool: int = 20_000
    projection: int = 128
    reweight: int = 0

    reference: ClassVar[str] = "Roth et al., Towards Total Recall in Industrial Anomaly Detection, CVPR 2022, arXiv 2106.08265, eq. 1-7"

    def __post_init__(self) -> None:
        for name in ("max_bank", "projection"):
            if getattr(self, name) < 1:
                raise ConfigError(f"patchcore: {name} = {getattr(self, name)} must be at least 1")
        if self.pool < self.max_bank:
            raise ConfigError(f"patchcore: pool = {self.pool} must be at least max_bank = {self.max_bank}")
        if self.reweight < 0 or self.reweight == 1 or self.reweight > self.max_bank:
            raise ConfigError(f"patchcore: reweight = {self.reweight} must be 0, or from 2 to max_bank = {self.max_bank}")

    @property
    def needs(self) -> frozenset[str]:
        return patterns("feature_map", self.layers)

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        first = next(iter(batches))
        reader = PatchReader.of(first, middle_layers(first, self.layers), smooth=True, who="patchcore")
        pool = reader.sample(batches, self.pool, generator)
        return {"bank": pool[self._core_set(pool, generator)], **reader.tensors()}

    def _core_set(self, pool: Float[Tensor, "m c"], generator: torch.Generator) -> Int64[Tensor, " b"]:
        if len(pool) <= self.max_bank:
            return torch.arange(len(pool), device=pool.device)
        first = int(torch.randint(len(pool), (), generator=generator, device=generator.device))
        if pool.shape[1] > self.projection:
            axes = torch.randn(pool.shape[1], self.projection, generator=generator, device=generator.device)
            pool = pool @ axes.to(pool)
        return k_center(pool, self.max_bank, first=first)

    def _distances(self, state: State, signals: Signals) -> tuple[Float[Tensor, "n *s c"], Float[Tensor, "n *s"], Int64[Tensor, "n *s"]]:
        """Patches, their distance to the nearest of the bank, and which that is."""
        patches = PatchReader.kept(state, smooth=True, who="patchcore").rows(signals).to(state["bank"])
        distance, which = k_nearest(patches.flatten(0, -2), state["bank"], 1)
        return patches, distance.reshape(patches.shape[:-1]), which.reshape(patches.shape[:-1])

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        patches, distance, which = self._distances(state, signals)
        flat = distance.flatten(1)
        score, at = flat.max(dim=1)
        neighbours = min(self.reweight, len(state["bank"]))
        if neighbours < 2:
            return score
        row = torch.arange(len(flat), device=flat.device)
        patch, nearest = patches.flatten(1, -2)[row, at], state["bank"][which.flatten(1)[row, at]]
        around = k_nearest(nearest, state["bank"], neighbours)[1]
        lengths = (patch[:, None] - state["bank"][around]).norm(dim=2)
        return score * (1 - torch.exp(score - lengths.logsumexp(dim=1)))

    def raw_map(self, state: State, signals: Signals) -> Float[Tensor, "n *s"]:
        return self._distances(state, signals)[1]
