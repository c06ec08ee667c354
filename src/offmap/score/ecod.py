"""Empirical tails, dimension by dimension."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from offmap.core.detector import State
from offmap.core.errors import ConfigError
from offmap.core.types import Signals
from offmap.score._bank import sampled
from offmap.score._layer import LayerDetector


@dataclass(frozen=True, kw_only=True)
class ECOD(LayerDetector):
    """ECOD: how far out in the tails, ``max(sum_j -ln L_j, sum_j -ln R_j, sum_j -ln T_j)`` over the dimensions j.

    ``L_j = (1 + #{x_i <= x}) / (M + 1)`` counts in-distribution images below in dimension j, ``R_j`` those above; ``T_j`` is ``L_j``
    where the dimension is skewed to the left, else ``R_j``. The number is in nats, >= 0; dimensions count as if independent. The
    ones keep a value beyond all images finite; the paper counts the image itself in.

    Fitting sorts a bank of M rows, scoring costs ``D log M`` an image; the state is ``M D`` numbers in float32. No parameter to tune.

    Fails when dimensions are usual one by one and only their combination is odd. Beyond the largest image a dimension gives
    ``ln(M + 1)`` however far it is, so all far images come near one score.

    Args:
        layer: name of the layer; ``last`` is the encoder's deepest.
        max_bank: rows kept; a uniform sample of more.
    """

    max_bank: int = 2000

    reference: ClassVar[str] = (
        "Li et al., ECOD: Unsupervised Outlier Detection Using Empirical Cumulative Distribution Functions, TKDE 2022, arXiv 2201.00382, "
        "eq. 3-7"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_bank < 2:
            raise ConfigError(f"ecod: max_bank = {self.max_bank} must be at least 2")

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        bank = sampled(batches, self.rows, self.max_bank, generator)
        return {"sorted": bank.float().T.contiguous().sort(dim=1).values, "left": skewness(bank) < 0}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        ordered = state["sorted"]
        left, right = tails(self.rows_as_given(signals, len(ordered)).float(), ordered)
        skewed = torch.where(state["left"], left, right)
        return torch.stack([left.sum(dim=1), right.sum(dim=1), skewed.sum(dim=1)]).amax(dim=0)


def tails(rows: Float32[Tensor, "n d"], ordered: Float32[Tensor, "d m"]) -> tuple[Float64[Tensor, "n d"], Float64[Tensor, "n d"]]:
    """``-ln`` of the share of sorted values at or below, and at or above, each number, both counting the number itself."""
    values, count = rows.T.contiguous(), ordered.shape[1]
    upto = torch.searchsorted(ordered, values, right=True)
    last = (upto - 1).clamp_min(0)
    before = torch.where(ordered.gather(1, last) == values, run_starts(ordered).gather(1, last), upto)
    nats = -(torch.arange(1, count + 2, dtype=torch.float64, device=rows.device) / (count + 1)).log()
    return torch.take(nats, upto).T, torch.take(nats, count - before).T


def run_starts(ordered: Float32[Tensor, "d m"]) -> Int64[Tensor, "d m"]:
    """For each sorted value the place of the first that is equal to it."""
    places = torch.arange(ordered.shape[1], device=ordered.device).expand(ordered.shape).clone()
    places[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = 0
    return places.cummax(dim=1).values


def skewness(rows: Float64[Tensor, "n d"]) -> Float64[Tensor, " d"]:
    """Third standardised moment; 0 for a constant dimension."""
    centred = rows - rows.mean(dim=0)
    deviation = centred.square().mean(dim=0).sqrt()
    moment: Tensor = centred.pow(3).mean(dim=0) / deviation.clamp_min(1e-30).pow(3)
    return torch.where(deviation > 1e-7 * rows.abs().amax(dim=0), moment, 0.0)
