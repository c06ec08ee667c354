"""Regret of the predictive normalised maximum likelihood learner."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.errors import ConfigError
from offmap.core.linalg import cholesky, unit_norm
from offmap.core.types import Signals
from offmap.score._head import HEAD, PENULTIMATE, head_of, two_or_more
from offmap.score._layer import rows_as_given, rows_of


@dataclass(frozen=True, kw_only=True)
class PNML(Detector):
    """Regret of a head that may still learn the image's label, ``log sum_i p_i / (p_i + (1 - p_i) p_i^x) / log K``, in [0, 1].

    With features of length one, ``q = h^T (X^T X + r I)^-1 h`` says how little the in-distribution features X fix the head in
    the direction of h, ``x = q / (1 + q)``, and ``p = softmax(W h + b)``. 0: the data leave no choice; 1: every label could be had.
    The probabilities are those of the normalised feature, which are less sure than the deployed network's.

    The ridge r is the project's own: a share of the mean eigenvalue of ``X^T X``. The pseudo-inverse of the paper gives
    directions never seen a q of zero, the opposite of what they deserve.

    Fitting costs ``N D^2 + D^3``, scoring ``D^2 + K D`` an image; the state is ``D^2 + (K + 1) D`` numbers.

    Fails when N is much less than D: nearly every image then has directions never seen, x is near 1 for all, and the
    prediction alone decides. The length of the features is lost. A head with one class is refused.

    Args:
        ridge: r as a share of the mean eigenvalue, in (0, 1].
    """

    ridge: float = 1e-3

    reference: ClassVar[str] = (
        "Bibas, Feder & Hassner, Single Layer Predictive Normalized Maximum Likelihood for Out-of-Distribution Detection, "
        "NeurIPS 2021, arXiv 2110.09246"
    )

    def __post_init__(self) -> None:
        if not 0 < self.ridge <= 1:
            raise ConfigError(f"pnml: ridge = {self.ridge} must be greater than 0 and at most 1")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({PENULTIMATE})

    @property
    def fit_needs(self) -> frozenset[str]:
        return self.needs | HEAD

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        first = next(iter(batches))
        width = rows_of(first, PENULTIMATE, "pnml").shape[1]
        weight, bias = head_of(first, width, "pnml")
        two_or_more(len(weight), "pnml")
        second = torch.zeros(width, width, dtype=torch.float64, device=weight.device)
        for batch in batches:
            rows = self._rows(batch, width)
            second = second.to(rows) + rows.T @ rows
        ridge = self.ridge * second.diagonal().mean().clamp_min(1e-12)
        factor = cholesky(second + torch.diag(ridge.expand(width)))
        return {"factor": factor, "weight": weight, "bias": bias}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        rows = rows_as_given(signals, PENULTIMATE, "pnml", len(state["factor"]))
        length: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-12)
        q = torch.cat([self._squared(state["factor"], part) for part in rows.split(1024)])[:, None] / length.double().square()
        return regret((rows @ state["weight"].to(rows).T / length).double() + state["bias"], q)

    def _squared(self, factor: Float64[Tensor, "d d"], rows: Float[Tensor, "n d"]) -> Float64[Tensor, " n"]:
        whitened: Tensor = torch.linalg.solve_triangular(factor, rows.double().T, upper=False)
        return whitened.square_().sum(dim=0)

    def _rows(self, signals: Signals, width: int) -> Float64[Tensor, "n d"]:
        return unit_norm(rows_of(signals, PENULTIMATE, "pnml", width))


def regret(logits: Float64[Tensor, "n k"], q: Float64[Tensor, "n 1"]) -> Float64[Tensor, " n"]:
    """``log sum_i p_i / (p_i + (1 - p_i) p_i^(q / (1 + q))) / log K``, in logarithms so that nothing under- or overflows."""
    log_p = logits.log_softmax(dim=1)
    p = log_p.exp()
    learnt = ((log_p / (1 + q)) - (-p).log1p()).sigmoid()
    return (learnt - p).sum(dim=1).clamp_min(0).log1p() / torch.tensor(float(logits.shape[1])).log()
