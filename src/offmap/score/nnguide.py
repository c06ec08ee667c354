"""Energy guided by the nearest in-distribution images."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.linalg import unit_norm
from offmap.core.types import Signals
from offmap.score._bank import chunks, sampled
from offmap.score._head import PENULTIMATE, common_widths
from offmap.score._layer import rows_as_given, rows_of


@dataclass(frozen=True, kw_only=True)
class NNGuide(Detector):
    """Nearest-neighbour guidance, ``-G(x) mean_i G_i <h / |h|, h_i / |h_i|>`` over the k largest terms, with ``G = logsumexp(z)``.

    The confidence of the image, times that of the in-distribution images it resembles: a confident image that resembles
    none is odd. G is the logsumexp with a plus sign, minus ``energy``.

    Fitting keeps a bank of at most ``max_bank`` rows; scoring costs ``M D`` an image for M rows; the state is ``M D`` numbers
    in float32.

    Fails where logsumexp changes its sign: a product of two negative factors looks like confidence. Fitting refuses
    images whose mean logsumexp is not positive; add a constant to the logits, or use ``knn``.

    Args:
        k: how many terms; the whole bank where it has fewer. The authors' benchmark takes 100 with a bank of 1 %.
        max_bank: rows kept; a uniform sample of more.
    """

    k: int = 10
    max_bank: int = 50_000

    reference: ClassVar[str] = "Park, Jung & Teoh, Nearest Neighbor Guidance for Out-of-Distribution Detection, ICCV 2023, arXiv 2309.14888"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"nnguide: k = {self.k} must be at least 1")
        if self.max_bank < self.k:
            raise ConfigError(f"nnguide: max_bank = {self.max_bank} must be at least k = {self.k}")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({PENULTIMATE, "logits"})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        _, classes = common_widths(batches, "nnguide")
        confidence = torch.cat([self._confidence(batch, classes) for batch in batches])
        if not float(confidence.mean()) > 0:
            mean = float(confidence.mean())
            raise SignalError(f"nnguide: the mean logsumexp of the logits is {mean:.3g} and must be positive; use knn, or energy, instead")
        bank = sampled(batches, lambda batch: self._confidence(batch, classes) * self._unit(batch), self.max_bank, generator)
        return {"bank": bank.float(), "classes": torch.tensor(classes)}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        features = rows_as_given(signals, PENULTIMATE, "nnguide", state["bank"].shape[1])
        bank, k = state["bank"].to(features), min(self.k, len(state["bank"]))
        length: Tensor = torch.linalg.vector_norm(features, dim=1).clamp_min(1e-12)
        nearest = [(part @ bank.T).topk(k, dim=1, sorted=False).values.mean(dim=1) for part in chunks(features, len(bank))]
        confidence = rows_as_given(signals, "logits", "nnguide", int(state["classes"])).logsumexp(dim=1)
        return -confidence * torch.cat(nearest) / length

    def _unit(self, signals: Signals, width: int | None = None) -> Float64[Tensor, "n d"]:
        return unit_norm(rows_of(signals, PENULTIMATE, "nnguide", width))

    def _confidence(self, signals: Signals, classes: int) -> Float64[Tensor, "n 1"]:
        return rows_of(signals, "logits", "nnguide", classes).logsumexp(dim=1, keepdim=True)
