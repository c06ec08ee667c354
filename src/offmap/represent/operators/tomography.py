"""What operators of tomography share: a sparse matrix that is made once for each size of image."""

from abc import abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.represent.operators.contract import Operator, Size, planes
from offmap.represent.operators.footprint import Matrix


@dataclass(frozen=True, kw_only=True)
class Tomography(Operator):
    """Line integrals in units of the longer side of the image, over strips as wide as a detector's bin.

    Args:
        views: number of angles.
    """

    views: int = 24

    modality: ClassVar[str] = "CT"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.views < 1:
            raise ConfigError(f"{self.method()}: views = {self.views} must be at least 1")

    @abstractmethod
    def count(self, size: Size) -> int:
        """Bins of the detector."""

    @abstractmethod
    def matrix(self, size: Size, dtype: torch.dtype, device: str) -> Matrix:
        """The projection and its transpose, ``(V B, H W)``, for pixels of width one."""

    def measured(self, size: Size) -> Size:
        return (self.views, self.count(size))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c v b"]:
        size = (int(x.shape[2]), int(x.shape[3]))
        flat, (n, c) = planes(x)
        return _times(_matrix(self, size, x.dtype, str(x.device))[0], flat, size).reshape(n, c, *self.measured(size))

    def adjoint(self, y: Float[Tensor, "n c v b"], size: Size) -> Float[Tensor, "n c h w"]:
        flat, (n, c) = planes(y)
        return _times(_matrix(self, tuple(size), y.dtype, str(y.device))[1], flat, size).reshape(n, c, *size)

    def hint(self, given: Size) -> str:
        if len(given) != 2:
            return ""
        if given[0] != self.views:
            return f"; it has {given[0]} views, the operator {self.views}: is it {self.method()}:views={given[0]}?"
        return f"; it has {given[1]} bins"


def _times(matrix: Tensor, flat: Float[Tensor, "n *s"], size: Size) -> Float[Tensor, "n p"]:
    return (matrix @ flat.flatten(1).T.contiguous()).T.contiguous() / max(size)


@lru_cache(maxsize=8)
def _matrix(operator: Tomography, size: Size, dtype: torch.dtype, device: str) -> Matrix:
    return operator.matrix(size, dtype, device)
