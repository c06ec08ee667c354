"""Tails of the empirical copula, dimension by dimension."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.detector import State
from offmap.core.errors import ConfigError
from offmap.core.types import Signals
from offmap.score._bank import sampled
from offmap.score._layer import LayerDetector
from offmap.score.ecod import skewness, tails

Combination = Literal["dimension", "sum"]


@dataclass(frozen=True, kw_only=True)
class COPOD(LayerDetector):
    """COPOD: how far out in the tails of the empirical copula, ``sum_j max(-ln W_j, (-ln U_j - ln V_j) / 2)`` over the dimensions j.

    ``U_j = (1 + #{x_i <= x}) / (M + 1)`` counts in-distribution images below in dimension j, ``V_j`` those above; ``W_j`` is ``U_j``
    where the dimension is skewed to the left, else ``V_j``. That is the authors' released code, which the published numbers come
    from. The algorithm as printed is ``max(sum_j -ln U_j, sum_j -ln V_j, sum_j -ln W_j)``, ``combine = "sum"``: the same number as
    ``ecod``. In nats, >= 0; dimensions count as if independent. The ones keep a value beyond all images finite; the paper counts the
    image itself in.

    Fitting sorts a bank of M rows, scoring costs ``D log M`` an image; the state is ``M D`` numbers in float32. No labels.

    Fails when dimensions are usual one by one and only their combination is odd: the copula of the name is never looked at between
    two dimensions. A dimension skewed to the right hardly counts values that are too small.

    Args:
        layer: name of the layer; ``last`` is the encoder's deepest.
        combine: ``dimension`` (the larger tail in each dimension, as released) or ``sum`` (the largest of three sums, as printed).
        max_bank: rows kept; a uniform sample of more.
    """

    combine: Combination = "dimension"
    max_bank: int = 2000

    reference: ClassVar[str] = "Li et al., COPOD: Copula-Based Outlier Detection, ICDM 2020, arXiv 2009.09463, algorithm 1"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.combine not in get_args(Combination):
            raise ConfigError(f"copod: combine = {self.combine!r} must be one of {', '.join(get_args(Combination))}")
        if self.max_bank < 2:
            raise ConfigError(f"copod: max_bank = {self.max_bank} must be at least 2")

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        bank = sampled(batches, self.rows, self.max_bank, generator)
        return {"sorted": bank.float().T.contiguous().sort(dim=1).values, "left": skewness(bank) < 0}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        ordered = state["sorted"]
        left, right = tails(self.rows(signals, len(ordered)).float(), ordered)
        skewed = torch.where(state["left"], left, right)
        if self.combine == "sum":
            return torch.stack([left.sum(dim=1), right.sum(dim=1), skewed.sum(dim=1)]).amax(dim=0)
        return torch.maximum(skewed, (left + right) / 2).sum(dim=1)
