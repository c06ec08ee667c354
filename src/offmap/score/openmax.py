"""Chance of a class that the classifier does not know."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.errors import ConfigError
from offmap.core.linalg import unit_norm
from offmap.core.types import Signals
from offmap.score._head import two_or_more
from offmap.score._layer import rows_of
from offmap.score._targets import Rows, right_or_predicted

SHARE, LEAST = 0.2, 3
"""The tail of a class is at most this share of its rightly classified images, and at least so many."""

Distance = Literal["euclidean", "euclidean_cosine"]


@dataclass(frozen=True, kw_only=True)
class OpenMax(Detector):
    """Log-odds of the unknown class that OpenMax adds to the softmax, ``u - logsumexp(v)``; higher = more likely unknown.

    ``w_c`` is the Weibull chance of a smaller distance between the logits and the mean logits of class c, fitted to the
    ``tail`` largest distances of that class's rightly classified images, counted from one below the least of them.
    The ``top`` largest logits lose a share, ``v = z (1 - w_c (top - rank) / top)`` with rank 0, 1, ..., and ``u`` is the sum of
    what they lost. The paper's P(unknown) is the logistic function of the number, which would tie at 1.

    Without labels, every prediction counts as right. Labels need not be the indices of the logits: each gets the logit under
    which its images are likeliest. Classes without a rightly classified image have ``w = 1``.

    Fitting reads the batches three times and holds ``K (K + tail)`` numbers; scoring costs ``K^2`` an image; the state is
    ``K (K + 3)`` numbers.

    The paper has thousands of images a class; so that 20 are not half of a small class, whose ordinary images would then be
    unknown, a tail here is at most a fifth of them (at least 3): the project's own rule.

    Fails where classes have fewer than about 20 right images: the tail is then a guess, and ordinary images look unknown.
    Negative logits gain where they should lose. With two classes, or logits that hardly vary, distances say little
    that ``max_logit`` does not. A network with one logit is refused.

    Args:
        tail: how many of the largest distances of a class the Weibull distribution is fitted to, at most.
        top: how many of the largest logits are reduced; all where there are fewer.
        distance: ``euclidean``, or ``euclidean_cosine``: ``|z - m| / 200 + 1 - cos(z, m)``, as in the authors' code.
    """

    tail: int = 20
    top: int = 10
    distance: Distance = "euclidean"

    reference: ClassVar[str] = "Bendale & Boult, Towards Open Set Deep Networks, CVPR 2016, arXiv 1511.06233"

    def __post_init__(self) -> None:
        if self.tail < 2:
            raise ConfigError(f"openmax: tail = {self.tail} must be at least 2")
        if self.top < 1:
            raise ConfigError(f"openmax: top = {self.top} must be at least 1")
        if self.distance not in get_args(Distance):
            raise ConfigError(f"openmax: distance = {self.distance!r} must be one of {', '.join(get_args(Distance))}")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"logits"})

    @property
    def fit_uses(self) -> frozenset[str]:
        return frozenset({"label"})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        first = rows_of(next(iter(batches)), "logits", "openmax")
        two_or_more(first.shape[1], "openmax")
        read = right_or_predicted(batches, "openmax")
        sums = first.new_zeros(first.shape[1], first.shape[1] + 1)
        for batch in batches:
            logits, which, right = read(batch)
            counted = torch.cat([logits, torch.ones_like(logits[:, :1])], dim=1)
            sums = sums.index_add(0, right[which == right], counted[which == right])
        means = sums[:, :-1] / sums[:, -1:].clamp_min(1)
        tails = self._tails(batches, read, means)
        lengths = [max(LEAST, math.ceil(count * SHARE)) for count in sums[:, -1].tolist()]
        fits = means.new_tensor([weibull_tail(tail[:length]) for tail, length in zip(tails, lengths, strict=True)])
        return {"means": means, "low": fits[:, 0], "scale": fits[:, 1], "shape": fits[:, 2]}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        logits = rows_of(signals, "logits", "openmax", len(state["means"]))
        above = (self._distances(logits, state["means"]) - state["low"]).clamp_min(0)
        unknown = -torch.expm1(-((above / state["scale"]) ** state["shape"]))
        unknown = torch.where(state["shape"] > 0, unknown, 1.0)
        top = min(self.top, logits.shape[1])
        order = logits.argsort(dim=1, descending=True, stable=True)
        ranks = torch.arange(logits.shape[1], device=logits.device).expand_as(order)
        share = torch.zeros_like(logits).scatter(1, order, ((top - ranks) / top).clamp_min(0).to(logits))
        lost = logits * unknown * share
        return lost.sum(dim=1) - (logits - lost).logsumexp(dim=1)

    def _distances(self, logits: Float64[Tensor, "n k"], means: Float64[Tensor, "c k"]) -> Float64[Tensor, "n c"]:
        distance = torch.stack([(logits - mean).square().sum(dim=1).sqrt() for mean in means], dim=1)
        return distance if self.distance == "euclidean" else distance / 200 + 1 - unit_norm(logits) @ unit_norm(means).T

    def _tails(self, batches: Iterable[Signals], read: Callable[[Signals], Rows], means: Float64[Tensor, "k k"]) -> list[Tensor]:
        """The largest distances of each class's rightly classified images to their mean."""
        tails = [means.new_zeros(0) for _ in means]
        for batch in batches:
            logits, which, right = read(batch)
            for c in torch.unique(right[which == right]).tolist():
                distances = self._distances(logits[(which == right) & (right == c)], means[c : c + 1])[:, 0]
                both = torch.cat([tails[c], distances])
                tails[c] = both.topk(min(self.tail, len(both))).values
        return tails


def weibull_tail(tail: Float64[Tensor, " n"]) -> tuple[float, float, float]:
    """Origin, scale and shape of the Weibull distribution likeliest to give the tail, the origin being its least value less 1.

    The shape stays between 0.01 and 1000 (a tail of equal values has none); 0 for an empty tail.
    """
    if len(tail) == 0:
        return 0.0, 1.0, 0.0
    low = float(tail.min()) - 1
    x = tail - low
    logs = x.log()

    def slope(shape: float) -> float:
        """Of the likelihood in the shape; falls with it."""
        weights = (shape * logs).softmax(dim=0)
        return 1 / shape + float(logs.mean()) - float(weights @ logs)

    small, large = 0.01, 1000.0
    for _ in range(100):
        middle = (small * large) ** 0.5
        small, large = (middle, large) if slope(middle) > 0 else (small, middle)
    shape = (small * large) ** 0.5
    scale = math.exp((float((shape * logs).logsumexp(dim=0)) - math.log(len(tail))) / shape)
    return low, scale, shape
