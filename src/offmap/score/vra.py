"""Energy of activations rectified at both ends."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional

from offmap.core.detector import State
from offmap.core.errors import ConfigError
from offmap.score._shaping import Activations, ShapingDetector, through_head
from offmap.score.react import ceiling

Low = Literal["zero", "clip"]


@dataclass(frozen=True, kw_only=True)
class VRA(ShapingDetector):
    """Variational rectified activations: the energy of activations that are zero below a, kept between, and b above.

    As ``react``, and weak activations, which odd images have many of, are dropped as well. a and b are percentiles of all
    in-distribution activations. The number is in units of the network's logits.

    Fitting reads the batches some twenty times and keeps histograms; scoring costs ``K D`` an image; the state is
    ``K (D + 1) + 2`` numbers.

    Fails as ``react`` does; and where more activations than the lower percentile are zero, a is zero and nothing but
    ``react`` is left. Features with negatives (transformers) are refused.

    Args:
        lower: percentile of a, in %.
        upper: percentile of b, in %; more than ``lower``.
        low: below a, activations become 0 (``zero``, the paper) or a (``clip``, as some benchmarks have it).
    """

    lower: float = 10.0
    upper: float = 90.0
    low: Low = "zero"

    reference: ClassVar[str] = (
        "Xu et al., VRA: Variational Rectified Activation for Out-of-distribution Detection, NeurIPS 2023, arXiv 2302.11716"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.lower < self.upper <= 100:
            raise ConfigError(f"vra: lower = {self.lower} and upper = {self.upper} must be percentiles with 0 <= lower < upper <= 100")
        if self.low not in get_args(Low):
            raise ConfigError(f"vra: low = {self.low!r} must be one of {', '.join(get_args(Low))}")

    def limits(self, activations: Activations, weight: Float64[Tensor, "k d"]) -> Mapping[str, Tensor]:
        ends = activations.percentile(self.lower) if self.lower > 0 else 0.0, ceiling(activations, self.upper)
        return {"ends": weight.new_tensor(ends)}

    def logits(self, state: State, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        low, high = state["ends"].to(rows)
        if self.low == "clip":
            return through_head(state, rows.clamp(float(low), float(high)))
        just_below = float(torch.nextafter(low, low - 1))
        return through_head(state, functional.threshold(rows.clamp_max(float(high)), just_below, 0.0))
