"""The image itself with noise: an extension of KLIP to images that were reconstructed elsewhere."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from offmap.represent.operators.contract import Operator, Size


@dataclass(frozen=True, kw_only=True)
class Identity(Operator):
    """``y = x + n``. An extension of this project, for plain images without raw data; the paper does not claim it.

    The noise is added by the reader of the image and is a setting: the larger it is, the coarser what can be told apart.

    Args:
        noise: deviation of the noise, for images in [-1, 1].
    """

    noise: float = 0.1

    reference: ClassVar[str] = "extension of this project; a Gaussian toy of it is in closed form"

    def measured(self, size: Size) -> Size:
        return size

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return x

    def adjoint(self, y: Float[Tensor, "n c h w"], size: Size) -> Float[Tensor, "n c h w"]:
        return y

    def lipschitz(self, size: Size) -> float:
        return 1.0

    def pull(self, residual: Float[Tensor, "n c h w"], variance: Float[Tensor, " n"], size: Size) -> Float[Tensor, "n c h w"]:
        return residual / (variance.view(-1, 1, 1, 1) + self.noise**2)
