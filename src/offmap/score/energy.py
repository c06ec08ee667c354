"""Free energy of the logits."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.score._logits import LogitDetector


@dataclass(frozen=True, kw_only=True)
class Energy(LogitDetector):
    """Free energy ``-T log sum_k exp(z_k / T)``; papers that call the opposite sign energy differ in the name only.

    A smooth ``max_logit``: within ``T log K`` of it. The number is in units of the network's logits.

    Nothing to fit; scoring costs K an image; the state is one number.

    Fails as ``max_logit`` does: distant images may get large logits, and a constant added to all logits changes every score.

    Args:
        temperature: T > 0; 1 in the paper. Small ones approach ``max_logit``, large ones the mean logit.
    """

    temperature: float = 1.0

    reference: ClassVar[str] = "Liu et al., Energy-based Out-of-distribution Detection, NeurIPS 2020, arXiv 2010.03759, eq. 4"

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(f"energy: temperature = {self.temperature} must be greater than 0")

    def of_logits(self, logits: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
        if self.temperature == 1:
            return -logits.logsumexp(dim=1)
        return -self.temperature * (logits / self.temperature).logsumexp(dim=1)
