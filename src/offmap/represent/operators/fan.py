"""Computed tomography with a fan beam."""

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
class Fan(Tomography):
    """Fan-beam CT: a point source on a circle, and a flat detector that is drawn through the middle of the image.

    ``y[v, b]`` is the mean over a bin of line integrals, in units of the image's longer side; the footprint of a pixel is the trapezoid
    of its four projected corners, as high as the ray through its middle is long within a square pixel. Bins are a pixel wide at the middle.
    At view 0 the source stands above the image, and turns as ``ct`` does.

    Args:
        noise: deviation of the noise, in the units of y.
        views: number of source positions, evenly spaced over the full circle.
        distance: from the source to the middle, in longer sides of the image; above 0.75, so that it stays outside.
    """

    distance: float = 2.0

    reference: ClassVar[str] = "Long, Fessler & Balter, 3D Forward and Back-Projection Using Separable Footprints, IEEE TMI 2010"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.distance > 0.75:
            raise ConfigError(f"fan: distance = {self.distance} must be above 0.75 sides of the image")

    def count(self, size: Size) -> int:
        reach, far = math.hypot(*size) / 2, self.distance * max(size)
        return 2 * math.ceil(far * reach / math.sqrt(far * far - reach * reach)) + 2

    def matrix(self, size: Size, dtype: torch.dtype, device: str) -> Matrix:
        return projection(self._views(size), math.prod(size), self.count(size), dtype=dtype, device=device)

    def _views(self, size: Size) -> Iterator[tuple[Float[Tensor, "4 p"], Float[Tensor, " p"]]]:
        right, up = centres(*size)
        far = self.distance * max(size)
        for view in range(self.views):
            angle = 2 * math.pi * view / self.views
            cosine, sine = math.cos(angle), math.sin(angle)

            def shadow(x: Tensor, y: Tensor, cosine: float = cosine, sine: float = sine) -> Tensor:
                across, towards = x * cosine + y * sine, y * cosine - x * sine
                return far * across / (far - towards)

            corners = torch.stack([shadow(right + dx, up + dy) for dx in (-0.5, 0.5) for dy in (-0.5, 0.5)]).sort(dim=0).values
            to_right, to_up = right + far * sine, up - far * cosine
            steepness = torch.maximum(to_right.abs(), to_up.abs()) / torch.hypot(to_right, to_up)
            yield corners + self.count(size) / 2, 1 / steepness
