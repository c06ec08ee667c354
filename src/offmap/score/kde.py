"""Kernel density of the features' principal components."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import log, pi
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.linalg import unit_norm
from offmap.core.types import Signals
from offmap.score._bank import chunks, sampled
from offmap.score._layer import LayerDetector
from offmap.score._subspace import principal_axes


@dataclass(frozen=True, kw_only=True)
class KDE(LayerDetector):
    """Gaussian kernel density, ``-log (1/M) sum_i N(x | x_i, b^2 I)``, of whitened principal components x of ``h / |h|``.

    Each component is brought to deviation 1; b is ``bandwidth``, or Scott's ``M^(-1/(d+4))`` for M images and d components where none
    is given. The number is a negative log density in nats, may be negative, and never underflows.

    Fitting stores a bank and costs ``M D^2 + D^3``, scoring ``d (D + M)`` an image; the state is ``M d + (d + 1) D`` numbers.

    Fails where the shift lies outside the first d components; and with many components, where every image is far from every
    other and the density is that of the nearest bank image alone.

    Args:
        layer: name of the layer; ``last`` is the encoder's deepest.
        components: d, 1 ... 64; never more than min(N - 1, D), and none that does not vary.
        bandwidth: b, in deviations of a component; not given: Scott's rule.
        max_bank: rows kept; a uniform sample of more.
    """

    components: int = 16
    bandwidth: float | None = None
    max_bank: int = 10_000

    reference: ClassVar[str] = "Parzen, Ann. Math. Stat. 33 (1962); bandwidth: Scott, Multivariate Density Estimation, Wiley 1992, eq. 6.42"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.components <= 64:
            raise ConfigError(f"kde: components = {self.components} must lie between 1 and 64")
        if self.bandwidth is not None and not self.bandwidth > 0:
            raise ConfigError(f"kde: bandwidth = {self.bandwidth} must be positive")
        if self.max_bank < 2:
            raise ConfigError(f"kde: max_bank = {self.max_bank} must be at least 2")

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        bank = sampled(batches, lambda batch: unit_norm(self.rows(batch)), self.max_bank, generator)
        mean, variances, basis = principal_axes(bank, self.components)
        varies = variances > 1e-12 * max(float(variances[0]), 1e-12)
        if len(bank) < 2 or not bool(varies.any()):
            raise SignalError(f"kde: the {len(bank)} images do not vary in direction: at least two different images are needed")
        axes = basis[:, varies] / variances[varies].sqrt()
        width = self.bandwidth or len(bank) ** (-1 / (axes.shape[1] + 4))
        return {"mean": mean, "axes": axes, "bank": (bank - mean) @ axes, "bandwidth": mean.new_tensor(width)}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        bank, width = state["bank"], state["bandwidth"]
        rows = (unit_norm(self.rows(signals, len(state["mean"]))) - state["mean"]) @ state["axes"]
        sums = torch.cat([_log_sum(part, bank, width) for part in chunks(rows, len(bank))])
        return bank.shape[1] * (width.log() + 0.5 * log(2 * pi)) + log(len(bank)) - sums


def _log_sum(rows: Float64[Tensor, "n d"], bank: Float64[Tensor, "m d"], width: Float64[Tensor, ""]) -> Float64[Tensor, " n"]:
    """Logarithm of the sum of unnormalised kernels."""
    squared = rows.square().sum(dim=1, keepdim=True) + bank.square().sum(dim=1) - 2 * rows @ bank.T
    return torch.logsumexp(-0.5 * squared.clamp_min(0) / width.square(), dim=1)
