"""Distance to the decision boundaries."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.types import Signals
from offmap.score._head import HEAD, PENULTIMATE, head_of, mean_of, two_or_more
from offmap.score._layer import distances, row_products, rows_as_given
from offmap.score._targets import predicted

Scale = Literal["centred", "norm"]


@dataclass(frozen=True, kw_only=True)
class FDBD(Detector):
    """Minus the mean distance to the boundaries of the predicted class, as a share of the distance to the mean feature.

    ``-1/(K-1) sum_c |z_y - z_c| / (|w_y - w_c| |h - m|)`` over the other classes c, with y the predicted class and m the
    mean of the in-distribution features: how far h would have to move until the prediction changes to c. At most 0.

    Fitting costs ``N D + K^2 D``, scoring ``K + D`` an image; the state is ``K^2 + D`` numbers.

    Fails near the mean feature, where the share becomes large for any image. Classes with equal weights have no
    boundary between them and are left out; a head whose classes are all equal, or with one class, is refused.

    Args:
        scale: distances are divided by ``|h - m|`` (``centred``) or by ``|h|`` (``norm``, a variant of the paper).
    """

    scale: Scale = "centred"

    reference: ClassVar[str] = "Liu & Qin, Fast Decision Boundary based Out-of-Distribution Detector, ICML 2024, arXiv 2312.11536"

    def __post_init__(self) -> None:
        if self.scale not in get_args(Scale):
            raise ConfigError(f"fdbd: scale = {self.scale!r} must be one of {', '.join(get_args(Scale))}")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({PENULTIMATE, "logits"})

    @property
    def fit_needs(self) -> frozenset[str]:
        return self.needs | HEAD

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        mean = mean_of(batches, "fdbd")
        weight, _ = head_of(next(iter(batches)), len(mean), "fdbd")
        two_or_more(len(weight), "fdbd")
        gaps = torch.stack([(row - weight).norm(dim=1) for row in weight])
        if not bool((gaps > 0).any()):
            raise SignalError("fdbd: all classes of the head have the same weights, there is no boundary between them")
        return {"mean": mean, "gaps": gaps}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        logits, which = predicted(signals, "fdbd", len(state["gaps"]))
        rows = rows_as_given(signals, PENULTIMATE, "fdbd", len(state["mean"]))
        mean, gaps = state["mean"].to(rows), state["gaps"].to(logits)
        length = distances(rows, mean if self.scale == "centred" else torch.zeros_like(mean)).clamp_min(1e-12)
        boundary = gaps > 0
        steepness = torch.where(boundary, 1 / gaps, 0) / boundary.sum(dim=1, keepdim=True).clamp_min(1)
        return -row_products(logits.amax(dim=1, keepdim=True) - logits, steepness, which) / length
