"""Images at a fraction of their size."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from offmap.core.errors import ConfigError
from offmap.represent.operators.contract import Operator, Size


@dataclass(frozen=True, kw_only=True)
class SuperResolution(Operator):
    """Means of squares of ``factor`` pixels a side. ``A A^T = 1 / factor^2``, so everything about it has a closed form.

    Args:
        noise: deviation of the noise.
        factor: by which both sides shrink; they must be multiples of it.
    """

    factor: int = 4

    reference: ClassVar[str] = "Chung et al., Diffusion Posterior Sampling, ICLR 2023, arXiv 2209.14687 (their kernel differs)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor < 1:
            raise ConfigError(f"super_resolution: factor = {self.factor} must be at least 1")

    def measured(self, size: Size) -> Size:
        if any(side % self.factor for side in size):
            raise ConfigError(f"super_resolution: factor = {self.factor} does not divide an image of {' x '.join(map(str, size))}")
        return tuple(side // self.factor for side in size)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c _h _w"]:
        self.measured((int(x.shape[2]), int(x.shape[3])))
        return functional.avg_pool2d(x, self.factor)

    def adjoint(self, y: Float[Tensor, "n c _h _w"], size: Size) -> Float[Tensor, "n c h w"]:
        spread = y.repeat_interleave(self.factor, dim=2).repeat_interleave(self.factor, dim=3)
        return spread / self.factor**2

    def lipschitz(self, size: Size) -> float:
        self.measured(size)
        return 1.0 / self.factor

    def pull(self, residual: Float[Tensor, "n c _h _w"], variance: Float[Tensor, " n"], size: Size) -> Float[Tensor, "n c h w"]:
        return self.adjoint(residual / (variance.view(-1, 1, 1, 1) / self.factor**2 + self.noise**2), size)

    def hint(self, given: Size) -> str:
        return f"; sides that are {self.factor} times as long are expected of the image" if torch.tensor(given).numel() == 2 else ""
