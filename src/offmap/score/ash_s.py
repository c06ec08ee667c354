"""Energy of pruned activations, scaled by what was pruned."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from offmap.core.detector import State
from offmap.score._shaping import PercentileShaping, concentration, through_head


@dataclass(frozen=True, kw_only=True)
class ASHS(PercentileShaping):
    """Activation shaping by scaling (ASH-S), ``-logsumexp(W h' + b)`` with ``h' = exp(s1 / s2) h`` where h is large, else 0.

    ``s1`` is the sum of an image's activations, ``s2`` that of its largest, which are kept. In units of logits, with a factor
    of 3 and far more.

    Nothing to fit but the head; scoring costs ``D log D + K D`` an image; the state is ``K (D + 1)`` numbers.

    Fails where odd images have more even activations: these are scaled up more, and look less odd where their top logit is
    positive. Features with negatives, whose sums cancel, are refused.

    Args:
        percentile: share of an image's activations that are pruned, in %, 0 to 98; the paper takes 65 to 95.
    """

    percentile: float = 90.0

    reference: ClassVar[str] = (
        "Djurisic et al., Extremely Simple Activation Shaping for Out-of-Distribution Detection, ICLR 2023, arXiv 2209.09858"
    )

    def logits(self, state: State, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        kept = self.kept(rows)
        return through_head(state, kept, concentration(rows, kept).exp())
