"""Images with holes."""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.represent.operators.contract import Operator, Size


@dataclass(frozen=True, kw_only=True)
class Inpaint(Operator):
    """Some squares of a grid are seen, the others are not measured at all: ``y`` is the list of seen pixels, ``(N, C, P)``.

    Where nothing is seen there is no evidence either: the map is low there whatever the image holds.

    Args:
        noise: deviation of the noise.
        grid: squares along each side; the last ones are smaller where the side is no multiple of it.
        keep: chance of a square to be seen, in (0, 1].
        seed: of the draw.
    """

    grid: int = 16
    keep: float = 0.5
    seed: int = 0

    reference: ClassVar[str] = "Shoushtari et al., 2025, arXiv 2505.11482 (a grid of 16 x 16 squares)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grid < 1 or not 0 < self.keep <= 1 or self.seed < 0:
            raise ConfigError(
                f"inpaint: grid = {self.grid} must be at least 1, keep = {self.keep} in (0, 1], seed = {self.seed} at least 0"
            )

    def measured(self, size: Size) -> Size:
        if min(size) < self.grid:
            raise ConfigError(f"inpaint: grid = {self.grid} is finer than an image of {' x '.join(map(str, size))}")
        return (len(_seen(self, tuple(size))),)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c p"]:
        return x.flatten(2)[:, :, self._at((int(x.shape[2]), int(x.shape[3])), x)]

    def adjoint(self, y: Float[Tensor, "n c p"], size: Size) -> Float[Tensor, "n c h w"]:
        full = y.new_zeros(*y.shape[:2], size[0] * size[1])
        full[:, :, self._at(size, y)] = y
        return full.reshape(*y.shape[:2], *size)

    def lipschitz(self, size: Size) -> float:
        self.measured(size)
        return 1.0

    def pull(self, residual: Float[Tensor, "n c p"], variance: Float[Tensor, " n"], size: Size) -> Float[Tensor, "n c h w"]:
        return self.adjoint(residual / (variance.view(-1, 1, 1) + self.noise**2), size)

    def _at(self, size: Size, like: Tensor) -> Int64[Tensor, " p"]:
        self.measured(size)
        at: Tensor = _seen(self, tuple(size)).to(like.device)
        return at


@lru_cache(maxsize=32)
def _seen(operator: Inpaint, size: Size) -> Int64[Tensor, " p"]:
    drawn = torch.rand(operator.grid, operator.grid, generator=torch.Generator().manual_seed(operator.seed)) < operator.keep
    if not bool(drawn.any()):
        drawn[operator.grid // 2, operator.grid // 2] = True
    rows, columns = (torch.arange(side) * operator.grid // side for side in size)
    return drawn[rows][:, columns].flatten().nonzero().flatten()
