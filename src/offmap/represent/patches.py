"""Volumes through an encoder of images: three orthogonal planes through the centre of each sliding patch (2.5-D)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from offmap.core.component import nearest
from offmap.core.encoder import Encoder
from offmap.core.errors import ConfigError, SignalError
from offmap.core.types import Signals
from offmap.represent.layers import map_names, map_signals, wanted

CHUNK = 32
"""Patches a pass, three planes each: bounds the memory of a large volume."""


@dataclass(frozen=True, slots=True)
class Cut:
    """How a volume is cut.

    Args:
        size: side of a cubic patch in voxels, 8 or more.
        stride: largest step between patches in voxels; the first patch touches the low edge and the last one the high edge.
        view: side in pixels to which a plane is resized (bilinear) for the base encoder, 32 or more.
        layer: layer of the base encoder; its last when ``last``.
    """

    size: int = 32
    stride: int = 16
    view: int = 64
    layer: str = "last"

    def __post_init__(self) -> None:
        for key, low in (("size", 8), ("stride", 1), ("view", 32)):
            if getattr(self, key) < low:
                raise ConfigError(f"patches: {key} = {getattr(self, key)} must be {low} or more")


class Patches(Encoder):
    """A volume as a grid of patches.

    ``feature_map.patches (N, C, d, h, w)``: for each patch the base features of its axial, coronal and sagittal centre planes,
    concatenated (C = 3 times the width of ``features.<layer>``). ``features.patches``: their mean and deviation over the grid.

    Args:
        base: encoder of planes.
        cut: size, stride, view and layer.

    Raises:
        ConfigError: the base encoder has no such layer.
    """

    def __init__(self, base: Encoder, cut: Cut | None = None) -> None:
        self.base = base
        self.cut = Cut() if cut is None else cut
        self._signal = f"features.{self.cut.layer}"
        if self._signal not in base.provides:
            known = list(base.layers)
            hint = nearest(self.cut.layer, known)
            raise ConfigError(f"patches: {base.name} has no layer {self.cut.layer!r}; it has: {', '.join(known)}{hint}")
        self.name = base.name
        self.layers = ("patches",)
        self.provides = map_names(self.layers) | {"image"}
        self.input = base.input
        self.sha256 = base.sha256

    def encode(self, images: Float[Tensor, "n c d h w"], needs: frozenset[str]) -> Signals:
        """As ``Encoder.encode``, for volumes.

        Raises:
            SignalError: a volume is smaller than one patch.
        """
        want = wanted(needs, self.provides, self.layers)
        signals = {"image": images} if "image" in want else {}
        if not want - {"image"}:
            return signals
        grid = tuple(len(s) for s in self._starts(images))
        corners = torch.cartesian_prod(torch.arange(len(images)), *self._starts(images))
        rows = torch.cat([self._represent(images, chunk) for chunk in corners.split(CHUNK)])
        maps = rows.reshape(len(images), *grid, -1).movedim(-1, 1)
        return signals | map_signals({"patches": maps}, want, "patches")

    def _starts(self, images: Tensor) -> list[Int[Tensor, " k"]]:
        size, sides = self.cut.size, images.shape[2:]
        if min(sides) < size:
            raise SignalError(
                f"volumes of shape {tuple(images.shape)} are smaller than one patch of {size} voxels: resample, or choose a smaller size"
            )
        counts = [math.ceil((side - size) / self.cut.stride) + 1 for side in sides]
        return [torch.linspace(0, side - size, count).round().to(torch.int64) for side, count in zip(sides, counts, strict=True)]

    def _represent(self, images: Tensor, corners: Int[Tensor, "p 4"]) -> Float[Tensor, "p f"]:
        planes = torch.cat([self._planes(images, corner) for corner in corners.tolist()])
        views = functional.interpolate(planes, size=(self.cut.view, self.cut.view), mode="bilinear", align_corners=False, antialias=True)
        return self.base.encode(views, frozenset({self._signal}))[self._signal].reshape(len(corners), -1)

    def _planes(self, images: Tensor, corner: list[int]) -> Float[Tensor, "3 c k k"]:
        n, z, y, x = corner
        size, half = self.cut.size, self.cut.size // 2
        cube = images[n, :, z : z + size, y : y + size, x : x + size]
        return torch.stack([cube[:, half], cube[:, :, half], cube[:, :, :, half]])

    def to(self, device: torch.device | str) -> "Patches":
        """The same encoder on another device."""
        return Patches(self.base.to(device), self.cut)

    def state(self) -> dict[str, Tensor] | None:
        """Weights of the base encoder."""
        return self.base.state()

    def config(self) -> dict[str, Any]:
        """The cut and the base encoder."""
        cut = {"size": self.cut.size, "stride": self.cut.stride, "view": self.cut.view, "layer": self.cut.layer}
        return {"kind": "patches", "name": self.name, "sha256": self.sha256, "cut": cut, "base": self.base.config()}
