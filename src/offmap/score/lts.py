"""Energy of logits scaled by the concentration of the activations."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from offmap.core.detector import State
from offmap.score._shaping import PercentileShaping, concentration, through_head


@dataclass(frozen=True, kw_only=True)
class LTS(PercentileShaping):
    """Logit scaling, ``-logsumexp(S z)`` with ``S = (s1 / s2)^2`` and ``z = W h + b``.

    ``s1`` is the sum of an image's activations, ``s2`` that of its largest 5 %. As ``scale``, applied to the logits. The number
    has the unit of logits, with a factor of up to 400.

    Nothing to fit but the head; scoring costs ``D log D + K D`` an image; the state is ``K (D + 1)`` numbers.

    Fails with negative logits: where all are negative, a larger S makes an image odder instead of less odd.
    Features with negatives are refused.

    Args:
        percentile: share of an image's activations that lies below the largest, in %, 0 to 98; 95 in the paper.
    """

    percentile: float = 95.0

    reference: ClassVar[str] = (
        "Djurisic et al., Logit Scaling for Out-of-Distribution Detection, Machine Vision and Applications 2025, arXiv 2409.01175"
    )

    def logits(self, state: State, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        return through_head(state, rows) * concentration(rows, self.largest(rows)[0]).square()
