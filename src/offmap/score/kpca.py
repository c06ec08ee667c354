"""Reconstruction error of kernel PCA by random Fourier features."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.linalg import unit_norm
from offmap.core.types import Signals
from offmap.score._bank import sampled
from offmap.score._layer import LayerDetector
from offmap.score._subspace import holding, outside, principal_about, total_moments

PAIRS = 500
"""Images whose distances to each other give the width of the kernel."""


@dataclass(frozen=True, kw_only=True)
class KPCA(LayerDetector):
    """Length of ``phi(h/|h|) - m`` outside the in-distribution principal subspace in the space of a Gaussian kernel, in [0, 2].

    ``phi`` holds cosines and sines of random directions, ``phi(x) . phi(y) ~ exp(-|x - y|^2 / (2 w^2))``, of length one; m is the
    in-distribution mean. A curved band of usual images, which plain PCA must enclose in a flat space, has a tight one here.

    Fitting costs ``N F^2 + F^3`` for F random features and two passes, scoring ``F (D + 2 d)`` an image; the state is ``F (D/2 + d + 1)``
    numbers. Random features make the sums mergeable; that the mean is taken off is the project's reading.

    Fails far out: the kernel forgets distance beyond a few widths, so all far images score alike; and with a kernel too narrow
    every image is far from every other.

    Args:
        layer: name of the layer; ``last`` is the encoder's deepest.
        features: F, an even number; the kernel is met within about ``1 / sqrt(F)``.
        width: w of the kernel; not given: the median distance between in-distribution images.
        variance: share of the trace that the subspace holds, in (0, 1).
    """

    features: int = 1024
    width: float | None = None
    variance: float = 0.9

    reference: ClassVar[str] = (
        "Fang et al., Kernel PCA for Out-of-Distribution Detection, NeurIPS 2024, arXiv 2402.02949; Rahimi & Recht, Random Features "
        "for Large-Scale Kernel Machines, NeurIPS 2007"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.features < 2 or self.features % 2:
            raise ConfigError(f"kpca: features = {self.features} must be an even number of at least 2")
        if self.width is not None and not self.width > 0:
            raise ConfigError(f"kpca: width = {self.width} must be positive")
        if not 0 < self.variance < 1:
            raise ConfigError(f"kpca: variance = {self.variance} must lie between 0 and 1")

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        some = sampled(batches, self._units, PAIRS, generator)
        width = self.width or float(torch.pdist(some).median() if len(some) > 1 else 0)
        if not width > 1e-6:
            raise SignalError("kpca: most images have the same features, so the kernel has no width: give width, or different images")
        drawn = torch.randn(some.shape[1], self.features // 2, dtype=torch.float64, generator=generator, device=generator.device)
        frequencies = drawn.to(some.device) / width
        moments = total_moments(batches, lambda batch: fourier(self._units(batch), frequencies))
        values, vectors = principal_about(moments, moments.mean)
        kept = min(holding(values, self.variance), max(1, moments.count - 1), len(values) - 1)
        return {"frequencies": frequencies, "mean": moments.mean, "basis": vectors[:, :kept]}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        rows = unit_norm(self.rows(signals, len(state["frequencies"])))
        return outside(fourier(rows, state["frequencies"]), state["mean"], state["basis"])

    def _units(self, signals: Signals) -> Float64[Tensor, "n d"]:
        return unit_norm(self.rows(signals))


def fourier(rows: Float64[Tensor, "n d"], frequencies: Float64[Tensor, "d f"]) -> Float64[Tensor, "n g"]:
    """Cosines and sines, each row of length one."""
    angles = rows @ frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1) / math.sqrt(frequencies.shape[1])
