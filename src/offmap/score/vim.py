"""Virtual-logit matching: the residual against the logits."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.types import Signals
from offmap.score._head import PENULTIMATE, head_of
from offmap.score._layer import rows_as_given, rows_of
from offmap.score._subspace import head_origin, outside, principal_about, total_moments


@dataclass(frozen=True, kw_only=True)
class ViM(Detector):
    """Virtual-logit matching, ``alpha |P_perp (h - u)| - logsumexp(z)``.

    The residual of ``residual`` becomes a further logit: ``u = -W^+ b``, ``P_perp`` projects outside the first d
    eigenvectors of ``E[(h - u)(h - u)^T]``, and ``alpha`` makes the mean residual as large as the mean top logit of the
    in-distribution images. The number is in units of the network's logits, and may be negative.

    Fitting costs ``N D^2 + D^3`` and a second pass over the batches, scoring ``2 d D`` an image; the state is
    ``(d + 1) D + 1`` numbers.

    Fails when the top logits are negative on average: ``alpha`` would turn the residual round, so fitting refuses them.
    Where distant images get large logits, these can outweigh the residual.

    Args:
        components: d; not given: 1000 if D >= 2048, 512 if D >= 768, else D / 2. Never more than min(N, D) - 1.
    """

    components: int | None = None

    reference: ClassVar[str] = "Wang et al., ViM: Out-Of-Distribution with Virtual-logit Matching, CVPR 2022, arXiv 2203.10807, eq. 4-6"

    def __post_init__(self) -> None:
        if self.components is not None and self.components < 1:
            raise ConfigError(f"vim: components = {self.components} must be at least 1")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({PENULTIMATE, "logits"})

    @property
    def fit_needs(self) -> frozenset[str]:
        return self.needs | {"head.weight", "head.bias"}

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        moments = total_moments(batches, self._rows)
        if moments.count < 2:
            raise SignalError("vim: one image spans no subspace: give at least two to fit on")
        origin = self._origin(next(iter(batches)), len(moments.mean)).to(moments.mean)
        vectors = principal_about(moments, origin)[1]
        basis = vectors[:, : min(self.components or default_components(len(origin)), moments.count - 1, len(origin) - 1)]
        return {"origin": origin, "basis": basis, "alpha": self._alpha(batches, origin, basis)}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        residual = outside(rows_as_given(signals, PENULTIMATE, "vim", len(state["origin"])), state["origin"], state["basis"])
        return state["alpha"] * residual - rows_as_given(signals, "logits", "vim").logsumexp(dim=1)

    def _rows(self, signals: Signals, width: int | None = None) -> Float64[Tensor, "n d"]:
        return rows_of(signals, PENULTIMATE, self.method(), width)

    def _origin(self, batch: Signals, width: int) -> Float64[Tensor, " d"]:
        return head_origin(*head_of(batch, width, "vim"))

    def _alpha(self, batches: Iterable[Signals], origin: Float64[Tensor, " d"], basis: Float64[Tensor, "d p"]) -> Float64[Tensor, ""]:
        top = residual = origin.new_zeros(())
        for batch in batches:
            top = top + batch["logits"].to(origin).max(dim=1).values.sum()
            residual = residual + outside(self._rows(batch), origin, basis).sum()
        if not float(top) > 0 or not float(residual) > 0:
            raise SignalError(
                f"vim: the sums of the top logits ({float(top):.3g}) and of the residuals ({float(residual):.3g}) must both be positive; "
                "use residual, or energy, instead"
            )
        return top / residual


def default_components(width: int) -> int:
    """1000 if D >= 2048, 512 if D >= 768, else D / 2 (appendix of the paper)."""
    return 1000 if width >= 2048 else 512 if width >= 768 else width // 2
