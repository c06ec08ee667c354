"""AnomalyDINO: angle of every patch to the most similar of a bank of in-distribution patches."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.detector import Localiser, State
from offmap.core.errors import ConfigError
from offmap.core.linalg import unit_norm
from offmap.core.neighbours import k_nearest
from offmap.core.types import Signals
from offmap.score._layers import patterns
from offmap.score._patches import PatchReader, check_share, fine_layer, mean_of_top


@dataclass(frozen=True, kw_only=True)
class AnomalyDINO(Localiser):
    """AnomalyDINO: mean over the oddest 1 % of the patches of ``1 - cos`` to the most similar patch of a bank, in [0, 2].

    A patch is the vector at one position of a feature map: a patch token of a vision transformer, for which the method was made
    (DINOv2), or a position of a convolutional network. The map holds ``1 - cos`` at each position. 0 is a copy of a patch of the bank,
    1 a patch at right angles to all of them. The paper leaves background patches out by a threshold on their first principal component;
    here all count.

    Nothing is trained. Fitting keeps a uniform sample of ``max_bank`` patches; scoring costs ``max_bank * C`` for each position; the
    state is ``max_bank * C`` numbers in float32, whatever the number of images.

    Fails when parts are usual and only their place is odd, and where in-distribution patches of a rare kind are missing from the sample.
    The length of a patch's vector is not seen.

    Args:
        layers: layers to use, their maps stacked on the finest grid; none named: the deepest with 10 or more positions a side.
        max_bank: patches kept; a uniform sample of more.
        top: share of the positions whose mean is the image's score, at least one of them.
    """

    layers: tuple[str, ...] = ()
    max_bank: int = 10_000
    top: float = 0.01

    reference: ClassVar[str] = (
        "Damm et al., AnomalyDINO: Boosting Patch-based Few-shot Anomaly Detection with DINOv2, WACV 2025, arXiv 2405.14529"
    )

    def __post_init__(self) -> None:
        check_share(self.top, "anomaly_dino")
        if not 1 <= self.max_bank <= 1_000_000:
            raise ConfigError(f"anomaly_dino: max_bank = {self.max_bank} must lie in 1..1000000")

    @property
    def needs(self) -> frozenset[str]:
        return patterns("feature_map", self.layers)

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        first = next(iter(batches))
        reader = PatchReader.of(first, fine_layer(first, self.layers, "anomaly_dino"), smooth=False, who="anomaly_dino")
        return {"bank": unit_norm(reader.sample(batches, self.max_bank, generator)), **reader.tensors()}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        return mean_of_top(self.raw_map(state, signals), self.top)

    def raw_map(self, state: State, signals: Signals) -> Float[Tensor, "n *s"]:
        rows = unit_norm(PatchReader.kept(state, smooth=False, who="anomaly_dino").rows(signals))
        distance, _ = k_nearest(rows.flatten(0, -2), state["bank"], 1)
        return (0.5 * distance.square()).reshape(rows.shape[:-1])
