"""Energy of activations scaled by their own concentration, each image with a percentile of its own."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float64
from torch import Tensor

from offmap.core.detector import State
from offmap.score._adascale import AdaptiveScaling
from offmap.score._shaping import through_head


@dataclass(frozen=True, kw_only=True)
class AdaSCALEA(AdaptiveScaling):
    """AdaSCALE-A: energy of scaled activations, ``-logsumexp(W h r + b)``, ``r = exp(s1 / s2)`` as in ``scale`` with an own percentile.

    The input is moved by ``epsilon sign(grad z_top)`` in the 5 % of its values that matter least; ``h'`` are the features then.
    ``Q' = sum over the top 5 % of h of relu(h') + lambda sum over the top 1 % of |h - h'|`` and ``percentile = p_min + (1 - F(Q'))
    (p_max - p_min)``, F the share of fit images with at most this ``Q'``. Odd images shift more, get a lower percentile and are
    scaled up less. In units of logits, with a factor of 3 and more.

    Fitting keeps ``Q'`` of at most ``max_bank`` images; scoring costs ``D log D + K D`` and two forward passes and one backward
    pass an image; the state is ``K (D + 1)`` numbers and the bank.

    Fails where features can be negative, which is refused; and where features hardly move, so that ``Q'`` is the first sum: this is
    larger for in-distribution images, whose activations are stronger, and the percentile goes the wrong way. Measured on a small
    network (128 features, four parts of the body, two others as odd images): AUROC 0.31, and 0.87 for ``scale``.

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
        return through_head(state, rows * factor)
