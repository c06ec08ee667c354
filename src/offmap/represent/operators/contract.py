"""The contract of a measurement operator: ``y = A x + n``, n Gaussian and white."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.component import Component
from offmap.core.errors import ConfigError, SignalError

Size = tuple[int, ...]
"""Height and width of an image in pixels."""

DENSE = 6000
"""Numbers of a measurement up to which ``A A^T`` is decomposed once; larger systems are solved by conjugate gradients."""

ITERATIONS = 60
"""Of conjugate gradients, the same for every image, so that none depends on its batch."""


@dataclass(frozen=True, kw_only=True)
class Operator(Component, ABC):
    """A linear map from images to measurements; frozen, its fields are JSON values.

    A channel of the image is measured by itself, so that measurements are ``(N, C, *M)``.

    Args:
        noise: standard deviation of the noise in the measurement, in its units for images in [-1, 1]; above 0.
    """

    noise: float = 0.01

    modality: ClassVar[str] = ""
    """DICOM modality that is measured so; empty for any."""

    def __post_init__(self) -> None:
        if not self.noise > 0:
            raise ConfigError(f"{self.method()}: noise = {self.noise} must be above 0; take a small value for a clean measurement")

    @abstractmethod
    def measured(self, size: Size) -> Size:
        """Shape of one channel's measurement of an image of this size.

        Raises:
            ConfigError: such an image cannot be measured.
        """

    @abstractmethod
    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c *m"]:
        """``A x``."""

    @abstractmethod
    def adjoint(self, y: Float[Tensor, "n c *m"], size: Size) -> Float[Tensor, "n c h w"]:
        """``A^T y``: ``<A x, y> = <x, A^T y>`` to rounding."""

    def lipschitz(self, size: Size) -> float:
        """Largest singular value of A, by power iteration where there is no closed form."""
        return _largest(self, tuple(size))

    def pull(self, residual: Float[Tensor, "n c *m"], variance: Float[Tensor, " n"], size: Size) -> Float[Tensor, "n c h w"]:
        """``A^T (v A A^T + noise^2)^-1 r``, the gradient of ``log N(y; A x0, v A A^T + noise^2)`` with respect to ``x0``.

        Equal to ``(v A^T A + noise^2)^-1 A^T r``. Exact by an eigendecomposition that is made once for measurements of up to
        ``DENSE`` numbers; by conjugate gradients above that. Operators that are diagonal somewhere have a closed form.

        Args:
            residual: ``y - A x0``.
            variance: v of each image, that of ``x0``.
        """
        if residual[0, 0].numel() > DENSE:
            return _conjugate_gradients(self, self.adjoint(residual, size), variance, size)
        values, vectors = _spectrum(self, tuple(size), residual.dtype, str(residual.device))
        flat = residual.flatten(2) @ vectors
        scaled = flat / (variance[:, None, None] * values + self.noise**2)
        return self.adjoint((scaled @ vectors.T).reshape(residual.shape), size)

    def reconstruct(self, y: Float[Tensor, "n c *m"], size: Size, *, variance: float = 1.0) -> Float[Tensor, "n c h w"]:
        """Regularised pseudo-inverse: the mean of x given y for a white Gaussian prior of this variance about 0."""
        return variance * self.pull(y, y.new_full((len(y),), variance), size)

    def check(self, y: Tensor, size: Size) -> None:
        """Refuse measurements that do not fit.

        Raises:
            SignalError: another shape than images of this size give, or values that are not finite (rows named).
        """
        expected = self.measured(size)
        if y.ndim < 3 or tuple(y.shape[2:]) != tuple(expected):
            raise SignalError(
                f"{self.method()}: a measurement of shape {tuple(y.shape)} does not fit {self.text()}: images of "
                f"{' x '.join(map(str, size))} give (N, C, {', '.join(map(str, expected))}){self.hint(tuple(y.shape[2:]))}"
            )
        bad = (~torch.isfinite(y)).flatten(1).any(dim=1)
        if bool(bad.any()):
            raise SignalError(f"{self.method()}: the measurement is not finite in rows {bad.nonzero().flatten().tolist()}")

    def hint(self, given: Size) -> str:
        """What a measurement of another shape may be; nothing where the operator does not know."""
        return ""

    def text(self) -> str:
        """The form of the command line, ``ct:views=24,noise=0.01``."""
        from offmap.core.signals import named

        return named(self.method(), self.params())


def planes(y: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Images and channels as one axis, and their numbers."""
    return y.flatten(0, 1), (y.shape[0], y.shape[1])


def seeded(shape: Sequence[int], seed: int) -> Tensor:
    """Standard normal float64 numbers on the CPU."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@lru_cache(maxsize=32)
def _largest(operator: Operator, size: Size) -> float:
    x, norm = seeded((1, 1, *size), 0), 0.0
    for _ in range(200):
        x = x / x.norm()
        x = operator.adjoint(operator.forward(x), size)
        before, norm = norm, float(x.norm())
        if abs(norm - before) <= 1e-10 * norm:
            break
    return math.sqrt(norm)


@lru_cache(maxsize=4)
def _spectrum(operator: Operator, size: Size, dtype: torch.dtype, device: str) -> tuple[Float[Tensor, " m"], Float[Tensor, "m m"]]:
    """Eigenvalues and eigenvectors of ``A A^T``; applied to the unit vectors a few at a time."""
    shape = operator.measured(size)
    count = math.prod(shape)
    columns = []
    for start in range(0, count, 256):
        unit = torch.zeros(min(256, count - start), count, dtype=torch.float64, device=device)
        unit[torch.arange(len(unit)), start + torch.arange(len(unit))] = 1.0
        columns.append(operator.forward(operator.adjoint(unit.reshape(len(unit), 1, *shape), size)).flatten(1))
    matrix = torch.cat(columns)
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return values.clamp_min(0).to(dtype), vectors.to(dtype)


def _conjugate_gradients(
    operator: Operator, given: Float[Tensor, "n c h w"], variance: Float[Tensor, " n"], size: Size
) -> Float[Tensor, "n c h w"]:
    """``(v A^T A + noise^2)^-1 given``, image by image with one step size each."""
    v = variance.view(-1, 1, 1, 1)
    z, left = torch.zeros_like(given), given
    way, square = given, given.square().sum(dim=(1, 2, 3), keepdim=True)
    tiny = torch.finfo(given.dtype).tiny
    for _ in range(ITERATIONS):
        through = v * operator.adjoint(operator.forward(way), size) + operator.noise**2 * way
        step = square / (way * through).sum(dim=(1, 2, 3), keepdim=True).clamp_min(tiny)
        z, left = z + step * way, left - step * through
        after = left.square().sum(dim=(1, 2, 3), keepdim=True)
        way, square = left + after / square.clamp_min(tiny) * way, after
    return z
