"""Energy of the largest contributions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import State
from offmap.core.errors import ConfigError
from offmap.score._shaping import Activations, ShapingDetector, through_head


@dataclass(frozen=True, kw_only=True)
class DICE(ShapingDetector):
    """Directed sparsification, ``-logsumexp((M * W) h + b)``, with M one for the weights that contribute most.

    The contribution of a weight is ``W_kd`` times the mean in-distribution activation of d; those above the percentile of all
    are kept. Units that mean nothing to a class cannot make an odd image look like it. In units of the network's logits.

    Fitting costs ``N D + K D log(K D)``, scoring ``K D`` an image; the state is ``K (D + 1)`` numbers.

    Fails where odd images fire the units that matter; and when classes differ in the length of their weights, the top
    contributions belong to few classes and the others keep nothing but their bias. Features with negatives are refused.

    Args:
        percentile: share of the weights that are dropped, in %; 90 keeps the top 10 %.
    """

    percentile: float = 90.0

    reference: ClassVar[str] = "Sun & Li, DICE: Leveraging Sparsification for Out-of-Distribution Detection, ECCV 2022, arXiv 2111.09805"

    def __post_init__(self) -> None:
        if not 0 <= self.percentile < 100:
            raise ConfigError(f"dice: percentile = {self.percentile} must be at least 0 and less than 100")

    def limits(self, activations: Activations, weight: Float64[Tensor, "k d"]) -> Mapping[str, Tensor]:
        count, total = 0, torch.zeros_like(weight[0])
        for rows in activations:
            count, total = count + len(rows), total + rows.sum(dim=0)
        contribution = weight * (total / count)
        threshold = float(np.percentile(contribution.cpu().numpy(), self.percentile))
        kept = contribution > threshold if self.percentile > 0 else torch.ones_like(weight, dtype=torch.bool)
        return {"weight": weight * kept}

    def logits(self, state: State, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        return through_head(state, rows)
