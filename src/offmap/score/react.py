"""Energy of clipped activations."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import State
from offmap.core.errors import ConfigError, SignalError
from offmap.score._shaping import Activations, ShapingDetector, through_head


@dataclass(frozen=True, kw_only=True)
class ReAct(ShapingDetector):
    """Rectified activations, ``-logsumexp(W min(h, c) + b)``, with c a percentile of all in-distribution activations.

    Odd images often fire a few units far beyond what any in-distribution image does, and owe their confidence to these;
    clipping takes it away. The number is in units of the network's logits.

    Fitting reads the batches nine times and keeps histograms; scoring costs ``K D`` an image; the state is
    ``K (D + 1) + 1`` numbers.

    Fails where odd images fire fewer units rather than stronger ones. Features with negatives (transformers) are refused,
    and so is a percentile at which the activation is zero, which would clip everything.

    Args:
        percentile: c's share of activations below it, in %, pooled over images and dimensions; the paper tries 85 to 99.
    """

    percentile: float = 90.0

    reference: ClassVar[str] = (
        "Sun, Guo & Li, ReAct: Out-of-distribution Detection With Rectified Activations, NeurIPS 2021, arXiv 2111.12797"
    )

    def __post_init__(self) -> None:
        if not 0 < self.percentile <= 100:
            raise ConfigError(f"react: percentile = {self.percentile} must be greater than 0 and at most 100")

    def limits(self, activations: Activations, weight: Float64[Tensor, "k d"]) -> Mapping[str, Tensor]:
        return {"ceiling": weight.new_tensor(ceiling(activations, self.percentile))}

    def logits(self, state: State, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        return through_head(state, rows.clamp_max(float(state["ceiling"])))


def ceiling(activations: Activations, percentile: float) -> float:
    """The percentile of the activations, > 0.

    Raises:
        SignalError: it is zero.
    """
    found = activations.percentile(percentile)
    if found <= 0:
        raise SignalError(f"{activations.who}: {percentile:g} % of the activations are zero, clipping there leaves nothing: raise it")
    return found
