"""Share of the feature's length inside the in-distribution principal subspace."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.linalg import principal
from offmap.core.types import Signals
from offmap.score._layer import LayerDetector, rows_of
from offmap.score._layers import deviations
from offmap.score._subspace import holding, total_moments


@dataclass(frozen=True, kw_only=True)
class NECO(LayerDetector):
    """NECO, ``-|P x| / |x|``, of the standardised feature x; times the largest logit where ``logits`` is set.

    Each dimension is brought to mean 0 and deviation 1 over the in-distribution images, P projects on their first principal
    components. Without logits the number lies in [-1, 0]: -1 wholly inside the subspace, 0 wholly outside. With logits it is in
    units of logits.

    Fitting costs ``N D^2 + D^3`` in one pass, scoring ``d D`` an image; the state is ``(d + 2) D`` numbers.

    Fails near the mean of all images, where a usual image has as much of its little length outside as inside; and where the
    shift lies inside the subspace. With logits, a negative largest logit would turn the order round, so fitting refuses
    in-distribution images that have one.

    Args:
        layer: name of the layer; ``last`` is the encoder's deepest.
        variance: share of the trace that the subspace holds, in (0, 1).
        logits: multiply by the largest logit, as the paper does for classifiers.
    """

    variance: float = 0.9
    logits: bool = False

    reference: ClassVar[str] = (
        "Ben Ammar et al., NECO: NEural Collapse Based Out-of-distribution detection, ICLR 2024, arXiv 2310.06823, eq. 6"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.variance < 1:
            raise ConfigError(f"neco: variance = {self.variance} must lie between 0 and 1")

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | ({"logits"} if self.logits else frozenset())

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        self._check_logits(batches)
        moments = total_moments(batches, self.rows)
        scale = deviations(moments.scatter.diagonal(), moments.count, moments.mean, f"neco: features.{self.layer}")
        values, vectors = principal(moments.scatter / torch.outer(scale, scale))
        return {"mean": moments.mean, "scale": scale, "basis": vectors[:, : min(holding(values, self.variance), moments.count - 1)]}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        rows = (self.rows(signals, len(state["mean"])) - state["mean"]) / state["scale"]
        inside: Tensor = torch.linalg.vector_norm(rows @ state["basis"], dim=1) / torch.linalg.vector_norm(rows, dim=1).clamp_min(1e-12)
        return -inside * self._top(signals) if self.logits else -inside

    def _top(self, signals: Signals) -> Float64[Tensor, " n"]:
        return rows_of(signals, "logits", "neco").amax(dim=1)

    def _check_logits(self, batches: Iterable[Signals]) -> None:
        if not self.logits:
            return
        tops = [self._top(batch) for batch in batches]
        count, negative = sum(map(len, tops)), sum(int((top <= 0).sum()) for top in tops)
        if negative:
            raise SignalError(
                f"neco: {negative} of {count} in-distribution images have no positive logit, which would turn the order round; "
                "set logits = false"
            )
