"""Energy of scaled activations."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from offmap.core.detector import State
from offmap.score._shaping import PercentileShaping, concentration, through_head


@dataclass(frozen=True, kw_only=True)
class SCALE(PercentileShaping):
    """Energy of activations scaled by their own concentration, ``-logsumexp(W h exp(s1 / s2) + b)``.

    ``s1`` is the sum of an image's activations, ``s2`` that of its largest. As ``ash_s`` without pruning, so that the ranking
    of classes is the deployed one (but for the bias). In units of logits, with a factor of 3 and far more.

    Nothing to fit but the head; scoring costs ``D log D + K D`` an image; the state is ``K (D + 1)`` numbers.

    Fails where odd images have more even activations: these are scaled up more, and look less odd where their top logit is
    positive. Features with negatives, whose sums cancel, are refused.

    Args:
        percentile: share of an image's activations that lies below the largest, in %, 0 to 98; the paper tries 65 to 95.
    """

    percentile: float = 85.0

    reference: ClassVar[str] = (
        "Xu et al., Scaling for Training Time and Post-hoc Out-of-distribution Detection Enhancement, ICLR 2024, arXiv 2310.00227"
    )

    def logits(self, state: State, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        return through_head(state, rows, concentration(rows, self.largest(rows)[0]).exp())
