"""Energy of pruned activations."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from offmap.core.detector import State
from offmap.score._shaping import PercentileShaping, through_head


@dataclass(frozen=True, kw_only=True)
class ASHP(PercentileShaping):
    """Activation shaping by pruning (ASH-P), ``-logsumexp(W h + b)`` of the largest activations of each image.

    The rest become zero; what is kept is left as it is. In units of the network's logits.

    Nothing to fit but the head; scoring costs ``D log D + K D`` an image; the state is ``K (D + 1)`` numbers.

    Fails where the largest activations alone tell odd from usual no better than all: pruning is the weakest of its family
    (``ash_s``, ``ash_b``, ``scale``). Features with negatives (transformers), where it collapses, are refused.

    Args:
        percentile: share of an image's activations that are pruned, in %, 0 to 98; the paper takes 60 to 90.
    """

    percentile: float = 60.0

    reference: ClassVar[str] = (
        "Djurisic et al., Extremely Simple Activation Shaping for Out-of-Distribution Detection, ICLR 2023, arXiv 2209.09858"
    )

    def logits(self, state: State, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        return through_head(state, self.kept(rows))
