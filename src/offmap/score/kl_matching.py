"""Divergence from the typical softmax of a class."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.errors import ConfigError
from offmap.core.types import Signals
from offmap.score._head import two_or_more
from offmap.score._layer import rows_as_given, rows_of
from offmap.score._logits import negative_entropy


@dataclass(frozen=True, kw_only=True)
class KLMatching(Detector):
    """Least divergence from a class's typical softmax, ``min_c sum_k p_k log(p_k / q_ck)`` in nats, >= 0.

    ``q_c`` is the mean softmax of the in-distribution images predicted as c, so a class that is always mistaken for its
    neighbour is not odd for that. A class never predicted has a one-hot template. Reads no labels. Templates come from
    the held-out images where there are some, since the softmax of images trained on is too sure.

    Fitting adds up K x K numbers; scoring costs ``K^2`` an image; the state is ``K^2`` numbers.

    Fails on images that the classifier is sure of, however distant; and a template of few images is near one-hot, so that
    ordinary doubt looks odd. A network with one logit is refused.

    Args:
        floor: least probability in a template, in (0, 0.1); without one, a zero would make the divergence infinite.
    """

    floor: float = 1e-12

    reference: ClassVar[str] = (
        "Hendrycks et al., Scaling Out-of-Distribution Detection for Real-World Settings, ICML 2022, arXiv 1911.11132"
    )

    def __post_init__(self) -> None:
        if not 0 < self.floor < 0.1:
            raise ConfigError(f"kl_matching: floor = {self.floor} must be between 0 and 0.1")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"logits"})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        p = self._softmax(next(iter(batches)))
        two_or_more(p.shape[1], "kl_matching")
        sums = p.new_zeros(p.shape[1], p.shape[1])
        for batch in batches if held_out is None else held_out:
            p = self._softmax(batch, len(sums))
            sums = sums.index_add(0, p.argmax(dim=1), p)
        counts = sums.sum(dim=1, keepdim=True)
        templates = torch.where(counts > 0, sums / counts.clamp_min(1e-12), torch.eye(len(sums)).to(sums))
        return {"log_templates": templates.clamp_min(self.floor).log()}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        templates = state["log_templates"]
        logits = rows_as_given(signals, "logits", "kl_matching", len(templates))
        crossed = logits.softmax(dim=1) @ templates.to(logits).T
        return (negative_entropy(logits) - crossed.amax(dim=1)).clamp_min(0)

    def _softmax(self, batch: Signals, width: int | None = None) -> Float64[Tensor, "n k"]:
        return rows_of(batch, "logits", "kl_matching", width).softmax(dim=1)
