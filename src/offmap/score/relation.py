"""Relations to the in-distribution images, in features and in predictions."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional

from offmap.core.detector import Detector, State
from offmap.core.errors import ConfigError
from offmap.core.linalg import unit_norm
from offmap.core.types import Signals
from offmap.score._bank import chunks, sampled
from offmap.score._head import PENULTIMATE, common_widths
from offmap.score._layer import rows_as_given, rows_of


@dataclass(frozen=True, kw_only=True)
class Relation(Detector):
    """Minus the mean relation to the in-distribution images, ``-mean_i [a_i > cut] a_i^power``, in [-1, 0].

    ``a_i = max(0, <h, h_i> / (|h| |h_i|)) <p, p_i>`` is a relation in features times one in predictions. The sum of the
    paper is divided by the size of the bank, so numbers of different gates compare.

    Fitting keeps a bank of at most ``max_bank`` rows; scoring costs ``M (D + K)`` an image for M rows; the state is
    ``M (D + K)`` numbers in float32.

    Fails for rare classes: an image of a class with few images in the bank has few relations and looks odd. Where no relation
    exceeds the cut, all scores are 0 and equal.

    Args:
        power: of each relation, > 0; the paper tries 1 to 8. Large ones count near images only.
        cut: relations up to it count as none, in [0, 1).
        max_bank: rows kept; a uniform sample of more.
    """

    power: float = 1.0
    cut: float = 0.03
    max_bank: int = 50_000

    reference: ClassVar[str] = (
        "Kim et al., Neural Relation Graph: A Unified Framework for Identifying Label Noise and Outlier Data, NeurIPS 2023, "
        "arXiv 2301.12321"
    )

    def __post_init__(self) -> None:
        if not 0 < self.power < float("inf"):
            raise ConfigError(f"relation: power = {self.power} must be greater than 0")
        if not 0 <= self.cut < 1:
            raise ConfigError(f"relation: cut = {self.cut} must be at least 0 and less than 1")
        if self.max_bank < 1:
            raise ConfigError(f"relation: max_bank = {self.max_bank} must be at least 1")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({PENULTIMATE, "logits"})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        width, classes = common_widths(batches, "relation")
        bank = sampled(batches, lambda batch: self._rows(batch, width, classes), self.max_bank, generator).float()
        return {"features": bank[:, :width], "softmax": bank[:, width:]}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        width, classes = state["features"].shape[1], state["softmax"].shape[1]
        rows = unit_norm(rows_as_given(signals, PENULTIMATE, "relation", width))
        p = rows_as_given(signals, "logits", "relation", classes).softmax(dim=1)
        features, softmax = state["features"].to(rows), state["softmax"].to(p)
        parts = zip(chunks(rows, len(features)), chunks(p, len(features)), strict=True)
        return torch.cat([-self._mean(part @ features.T, agreeing @ softmax.T) for part, agreeing in parts])

    def _rows(self, signals: Signals, width: int, classes: int) -> Float64[Tensor, "n d"]:
        features = unit_norm(rows_of(signals, PENULTIMATE, "relation", width))
        return torch.cat([features, rows_of(signals, "logits", "relation", classes).softmax(dim=1)], dim=1)

    def _mean(self, cosine: Float[Tensor, "n m"], agreement: Float[Tensor, "n m"]) -> Float[Tensor, " n"]:
        relation = functional.threshold(cosine.mul_(agreement), self.cut, 0.0, inplace=True)
        return (relation if self.power == 1 else relation.pow_(self.power)).mean(dim=1)
