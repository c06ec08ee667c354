"""What methods share that replace the classifier's head by a Gaussian over heads: a Laplace approximation of the last layer."""

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.types import Signals
from offmap.score._head import HEAD, PENULTIMATE, Head, head_of, two_or_more
from offmap.score._layer import CACHED, rows_as_given, rows_of
from offmap.score._many import check_passes

DRAWN = 2**21
"""Logits drawn at a time."""


@dataclass(frozen=True, kw_only=True)
class LastLayerLaplace(Detector):
    """Reads what the logits of ``samples`` heads say that the data allow.

    The curvature of the cross-entropy at the head, ``sum_n (diag p_n - p_n p_n^T) x h_n h_n^T`` with h the penultimate features and a 1,
    is taken as the Kronecker product ``A x B`` of the mean of the first factor and the sum of the second. With the prior precision l
    the logits of an image are Gaussian about those of the network, with covariance ``U diag_i(sum_j g_j^2 / (a_i b_j + l)) U^T``,
    where U, a and V, b are the eigenvectors and eigenvalues of A and B, and ``g = V^T h``.

    Args:
        samples: heads drawn.
        precision: prior precision; that of the largest evidence when None.
    """

    samples: int = 64
    precision: float | None = None

    def __post_init__(self) -> None:
        check_passes(self.samples, self.method())
        if self.precision is not None and not (0 < self.precision < math.inf):
            raise ConfigError(f"{self.method()}: precision = {self.precision} must be greater than 0 and finite")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({PENULTIMATE})

    @property
    def fit_needs(self) -> frozenset[str]:
        return self.needs | HEAD

    @abstractmethod
    def of_samples(self, log_p: Float64[Tensor, "n s k"]) -> Float64[Tensor, " n"]:
        """The score from the logarithms of the probabilities under each head."""

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        first = next(iter(batches))
        width = rows_of(first, PENULTIMATE, self.method()).shape[1]
        head = weight, bias = head_of(first, width, self.method())
        two_or_more(len(weight), self.method())
        classes, inputs = self._curvature(batches, head)
        a, towards = torch.linalg.eigh(classes)
        b, basis = torch.linalg.eigh(inputs)
        curvature = b.clamp_min(0)[:, None] * a.clamp_min(0)
        precision = self._evidence(curvature, head) if self.precision is None else self.precision
        half = torch.randn((self.samples + 1) // 2, len(weight), dtype=torch.float64, generator=generator).to(weight.device)
        return {
            "weight": weight,
            "bias": bias,
            "basis": basis,
            "variance": 1 / (curvature + precision),
            "towards": towards,
            "noise": torch.cat([half, -half])[: self.samples],
            "precision": weight.new_tensor(precision),
        }

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        rows = rows_as_given(signals, PENULTIMATE, self.method(), state["weight"].shape[1])
        few = max(1, min(CACHED, DRAWN // state["noise"].numel()))
        return torch.cat([self.of_samples(drawn_logits(state, part.double()).log_softmax(dim=2)) for part in rows.split(few)])

    def _curvature(self, batches: Iterable[Signals], head: Head) -> tuple[Float64[Tensor, "k k"], Float64[Tensor, "e e"]]:
        """Mean over the images of ``diag p - p p^T``, and sum of ``h h^T``."""
        weight, bias = head
        classes, inputs = weight.new_zeros(len(weight), len(weight)), weight.new_zeros(weight.shape[1] + 1, weight.shape[1] + 1)
        count = 0
        for batch in batches:
            rows = rows_of(batch, PENULTIMATE, self.method(), weight.shape[1])
            p = (rows @ weight.T + bias).softmax(dim=1)
            extended = with_one(rows)
            classes, inputs, count = classes + _spread(p), inputs + extended.T @ extended, count + len(rows)
        return classes / count, inputs

    def _evidence(self, curvature: Float64[Tensor, "e k"], head: Head) -> float:
        """Prior precision of the largest evidence: the only root of ``l |head|^2 = sum_ij c_ij / (c_ij + l)``, by bisection."""
        size, total = float(sum(part.square().sum() for part in head)), float(curvature.sum())
        if size == 0 or total == 0:
            reason = "the head is zero" if size == 0 else "the head is sure of every image to the last digit"
            raise SignalError(f"{self.method()}: {reason}, so the data say nothing of its prior precision: set precision, such as 1.0")
        high = 0.5 * math.log(total / size)
        low = high - 100
        for _ in range(100):
            middle = (low + high) / 2
            level = math.exp(middle)
            low, high = (middle, high) if level * size < float((curvature / (curvature + level)).sum()) else (low, middle)
        return math.exp((low + high) / 2)


def drawn_logits(state: State, rows: Float64[Tensor, "n d"]) -> Float64[Tensor, "n s k"]:
    """Logits under each head drawn: those of the network plus the symmetric root of their covariance times the same noise for all."""
    deviation = ((with_one(rows) @ state["basis"]).square() @ state["variance"]).sqrt()
    turned = state["noise"] @ state["towards"]
    logits = rows @ state["weight"].T + state["bias"]
    return logits[:, None] + (deviation[:, None] * turned) @ state["towards"].T


def with_one(rows: Float64[Tensor, "n d"]) -> Float64[Tensor, "n e"]:
    """The rows with a 1 at the end, for the bias."""
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)


def _spread(p: Float64[Tensor, "n k"]) -> Float64[Tensor, "k k"]:
    """Sum of ``diag p - p p^T``; its diagonal ``p (1 - p)`` from the other probabilities, so that sure predictions keep their digits."""
    products = p.T @ p
    off = products - products.diagonal().diag()
    return off.sum(dim=1).diag() - off
