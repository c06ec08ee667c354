"""Gaussian blur, to be undone."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.represent.operators.contract import Operator, Size


@dataclass(frozen=True, kw_only=True)
class Deblur(Operator):
    """Circular convolution with a Gaussian that is cut to a square and sums to one; its own adjoint, as the kernel is even.

    Args:
        noise: deviation of the noise.
        kernel: side of the kernel in pixels, odd, at most the image's shorter side.
        deviation: of the Gaussian in pixels.
    """

    kernel: int = 21
    deviation: float = 9.0

    reference: ClassVar[str] = "Kheirandish, Hong & Fridovich-Keil, KLIP, CVPR 2026 (kernel of 21, deviation of 9 pixels)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel < 1 or self.kernel % 2 == 0 or not self.deviation > 0:
            raise ConfigError(f"deblur: kernel = {self.kernel} must be odd and at least 1, deviation = {self.deviation} above 0")

    def measured(self, size: Size) -> Size:
        if min(size) < self.kernel:
            raise ConfigError(f"deblur: kernel = {self.kernel} is larger than an image of {' x '.join(map(str, size))}")
        return size

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return self._filtered(x, self._gain(x))

    def adjoint(self, y: Float[Tensor, "n c h w"], size: Size) -> Float[Tensor, "n c h w"]:
        return self._filtered(y, self._gain(y))

    def lipschitz(self, size: Size) -> float:
        self.measured(size)
        return 1.0

    def pull(self, residual: Float[Tensor, "n c h w"], variance: Float[Tensor, " n"], size: Size) -> Float[Tensor, "n c h w"]:
        gain = self._gain(residual)
        return self._filtered(residual, gain / (variance.view(-1, 1, 1, 1) * gain.square() + self.noise**2))

    def _gain(self, x: Tensor) -> Float[Tensor, "h f"]:
        size = (int(x.shape[2]), int(x.shape[3]))
        self.measured(size)
        return _gain(self, size, x.dtype, str(x.device))

    def _filtered(self, x: Tensor, gain: Tensor) -> Tensor:
        found: Tensor = torch.fft.irfft2(torch.fft.rfft2(x) * gain, s=x.shape[2:])
        return found


@lru_cache(maxsize=8)
def _gain(operator: Deblur, size: Size, dtype: torch.dtype, device: str) -> Float[Tensor, "h f"]:
    """Transfer function, real since the kernel is even."""
    at = torch.arange(operator.kernel, dtype=torch.float64) - operator.kernel // 2
    line = torch.exp(-0.5 * (at / operator.deviation).square())
    line = line / line.sum()
    rows, columns = (
        (line * torch.cos(2 * math.pi * frequency[:, None] * at)).sum(dim=1)
        for frequency in (torch.fft.fftfreq(size[0], dtype=torch.float64), torch.fft.rfftfreq(size[1], dtype=torch.float64))
    )
    return (rows[:, None] * columns).to(dtype=dtype, device=device)
