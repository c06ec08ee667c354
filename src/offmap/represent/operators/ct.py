"""Computed tomography with few parallel-beam views."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.represent.operators.contract import Size
from offmap.represent.operators.footprint import Matrix, centres, projection
from offmap.represent.operators.tomography import Tomography


@dataclass(frozen=True, kw_only=True)
class CT(Tomography):
    """Parallel-beam CT: ``y[v, b]``, the mean over a bin of line integrals at angle ``v arc / views``; exact for square pixels.

    Integrals are in units of the image's longer side, so that y is about as large as x. A bin is a pixel wide, the detector covers
    the diagonal. At angle 0 rays run along columns; angles turn as in scikit-image's ``radon``, whose values are the longer side times
    these. The adjoint is the transpose of the same matrix. Simulating and reconstructing with one matrix is an inverse crime: numbers
    from it are better than those of a scanner.

    Args:
        noise: deviation of the noise, in the units of y.
        views: number of angles, evenly spaced.
        arc: over so many degrees, the last one left out; below 180 a wedge is missing.
    """

    arc: float = 180.0

    reference: ClassVar[str] = "Radon 1917; areas of squares under strips in closed form"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.arc <= 360:
            raise ConfigError(f"ct: arc = {self.arc} must lie in (0, 360] degrees")

    def count(self, size: Size) -> int:
        return math.ceil(math.hypot(*size))

    def matrix(self, size: Size, dtype: torch.dtype, device: str) -> Matrix:
        return projection(self._views(size), math.prod(size), self.count(size), dtype=dtype, device=device)

    def _views(self, size: Size) -> Iterator[tuple[Float[Tensor, "4 p"], Float[Tensor, " p"]]]:
        right, up = centres(*size)
        for view in range(self.views):
            angle = math.radians(self.arc * view / self.views)
            cosine, sine = abs(math.cos(angle)), abs(math.sin(angle))
            place = right * math.cos(angle) + up * math.sin(angle) + self.count(size) / 2
            outer, inner = (cosine + sine) / 2, abs(cosine - sine) / 2
            corners = torch.stack([place - outer, place - inner, place + inner, place + outer])
            yield corners, torch.full_like(place, 1 / max(cosine, sine))
