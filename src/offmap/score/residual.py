"""Length of the feature outside the in-distribution principal subspace."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.types import Signals
from offmap.score._layer import LayerDetector
from offmap.score._subspace import head_origin, holding, outside, principal_about, total_moments


@dataclass(frozen=True, kw_only=True)
class Residual(LayerDetector):
    """Length of ``h - u`` outside the principal subspace of the in-distribution features, ``|P_perp (h - u)|``, >= 0.

    The origin ``u`` is where all logits vanish, ``-W^+ b``, where the batches have ``head.weight`` and ``head.bias`` of the
    layer's width; otherwise the mean. The subspace holds the first d eigenvectors of ``E[(h - u)(h - u)^T]``, d < min(N, D).
    The number is in units of the features.

    Fitting costs ``N D^2 + D^3``, scoring ``2 d D`` an image; the state is ``(d + 1) D`` numbers.

    Fails when the shift lies inside the subspace: such an image scores like an in-distribution one however far it is.

    Args:
        layer: name of the layer; ``last`` is the encoder's deepest.
        components: d; not given: the fewest that hold ``variance``. Never more than min(N, D) - 1.
        variance: share of the trace to hold, in (0, 1).
    """

    components: int | None = None
    variance: float = 0.95

    reference: ClassVar[str] = (
        "Wang et al., ViM: Out-Of-Distribution with Virtual-logit Matching, CVPR 2022, arXiv 2203.10807, eq. 3 (residual)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.components is not None and self.components < 1:
            raise ConfigError(f"residual: components = {self.components} must be at least 1")
        if not 0 < self.variance < 1:
            raise ConfigError(f"residual: variance = {self.variance} must lie between 0 and 1")

    @property
    def fit_uses(self) -> frozenset[str]:
        return frozenset({"head.weight", "head.bias"})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        moments = total_moments(batches, self.rows)
        if moments.count < 2:
            raise SignalError("residual: one image spans no subspace: give at least two to fit on")
        origin = self._origin(next(iter(batches)), moments.mean)
        values, vectors = principal_about(moments, origin)
        count = self.components or holding(values, self.variance)
        return {"origin": origin, "basis": vectors[:, : min(count, moments.count - 1, len(values) - 1)]}

    def _origin(self, batch: Signals, mean: Float64[Tensor, " d"]) -> Float64[Tensor, " d"]:
        if "head.weight" not in batch or "head.bias" not in batch or batch["head.weight"].shape[1] != len(mean):
            return mean
        return head_origin(batch["head.weight"], batch["head.bias"]).to(mean)

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        return outside(self.rows_as_given(signals, len(state["origin"])), state["origin"], state["basis"])
