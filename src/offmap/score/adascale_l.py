"""Energy of logits scaled by the concentration of the activations, each image with a percentile of its own."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float64
from torch import Tensor

from offmap.core.detector import State
from offmap.score._adascale import AdaptiveScaling
from offmap.score._shaping import through_head


@dataclass(frozen=True, kw_only=True)
class AdaSCALEL(AdaptiveScaling):
    """AdaSCALE-L: energy of scaled logits, ``-logsumexp(r (W h + b))``, with the factor ``r = exp(s1 / s2)`` of ``adascale_a``.

    Differs from ``adascale_a`` in that the bias is scaled too. That the factor is the same is this project's reading of the paper. In
    units of logits, with a factor of 3 and more.

    Fitting keeps ``Q'`` of at most ``max_bank`` images; scoring costs ``D log D + K D`` and two forward passes and one backward
    pass an image, shared with ``adascale_a``; the state is ``K (D + 1)`` numbers and the bank.

    Fails as ``adascale_a``; and where all logits are negative, a larger factor raises the score instead of lowering it.

    Args:
        p_min: percentile of the images that shift most, in %, 0 to ``p_max``.
        p_max: percentile of those that shift least, at most 98; the paper takes 85, with a ``p_min`` of 75 or 80.
        top: share of dimensions, the largest of h, whose moved activation is summed, in (0, 1].
        shift_top: share of dimensions, the largest of h, whose change is summed, in (0, 1].
        shift_weight: lambda, 0 or more.
        epsilon: length of the change in units of the normalised input, 0 or more.
        share: share of the input's values that are changed, in (0, 1].
        max_bank: values of ``Q'`` kept; a uniform sample of more.
    """

    reference: ClassVar[str] = "Regmi, AdaSCALE: Adaptive Scaling for OOD Detection, 2025, arXiv 2503.08023"

    def logits(self, state: State, rows: Float64[Tensor, "n d"], factor: Float64[Tensor, "n 1"]) -> Float64[Tensor, "n k"]:
        return factor * through_head(state, rows)
