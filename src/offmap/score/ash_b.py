"""Energy of pruned activations, all set to one value."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from offmap.core.detector import State
from offmap.score._shaping import PercentileShaping, kept_count, through_head


@dataclass(frozen=True, kw_only=True)
class ASHB(PercentileShaping):
    """Activation shaping by binarising (ASH-B), ``-logsumexp(W h' + b)`` with ``h' = s1 / k`` for the k largest activations, else 0.

    ``s1`` is the sum of all of an image's activations, and stays their sum where k or more are above zero. An activation of zero
    stays zero even among the k largest (the project's own rule: which zeros are among them is chance). Benchmarks that
    list plain "ash" mean this method; the paper's headline is ``ash_s``. In units of the network's logits.

    Nothing to fit but the head; scoring costs ``D log D + K D`` an image; the state is ``K (D + 1)`` numbers.

    Fails where odd images have a large sum of activations: it goes to all units kept, whichever they are. With few dimensions
    the pattern of units is all that is left. Features with negatives are refused.

    Args:
        percentile: share of an image's activations that are pruned, in %, 0 to 98; the paper takes 65, benchmarks 90.
    """

    percentile: float = 90.0

    reference: ClassVar[str] = (
        "Djurisic et al., Extremely Simple Activation Shaping for Out-of-Distribution Detection, ICLR 2023, arXiv 2209.09858"
    )

    def logits(self, state: State, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        kept = self.kept(rows)
        level = rows.sum(dim=1, keepdim=True) / kept_count(rows.shape[1], self.percentile)
        return through_head(state, kept.sign_().mul_(level))
