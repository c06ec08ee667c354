"""A U-Net that says for each pixel how odd it is, with a classifier on its coarsest level (Ronneberger et al., MICCAI 2015, 1505.04597)."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offmap.core.errors import ConfigError, NotAvailableError, SignalError
from offmap.represent.nets.architecture import Architecture
from offmap.represent.nets.unet import draw

Objective = Literal["map", "class", "both"]


@dataclass(frozen=True, slots=True)
class SyntheticAnomalyShape(Architecture):
    """Architecture.

    Args:
        channels: of the images, 1 or 3.
        widths: channels of each level from fine to coarse, multiples of 8; each level but the first halves the grid.
        classes: the unaltered image and each task, 2 or more.
        objective: ``map`` without classifier, ``class`` without the way up and the map, or ``both``.
        axes: of space, 2 or 3.
    """

    what: ClassVar[str] = "network"
    added: ClassVar[Mapping[str, Any]] = {"axes": 2}

    channels: int = 1
    widths: tuple[int, ...] = (16, 32, 64, 64)
    classes: int = 2
    objective: Objective = "map"
    axes: int = 2

    def __post_init__(self) -> None:
        if self.channels not in (1, 3) or not 2 <= self.classes <= 100:
            raise ConfigError(f"channels = {self.channels} must be 1 or 3, classes = {self.classes} lie in 2..100")
        if not 2 <= len(self.widths) <= 6 or any(w < 8 or w % 8 for w in self.widths):
            raise ConfigError(f"widths = {self.widths} must be two to six multiples of 8")
        if self.objective not in ("map", "class", "both"):
            raise ConfigError(f"objective = {self.objective!r} must be 'map', 'class' or 'both'")
        if self.axes not in (2, 3):
            raise ConfigError(f"axes = {self.axes} must be 2 or 3")

    @property
    def stride(self) -> int:
        """By how much the coarsest grid is smaller than the image: the least side of an image in pixels."""
        return int(2 ** (len(self.widths) - 1))


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What the network sees in images.

    Args:
        features: mean of the coarsest level.
        map: logits of each pixel's label; None where the network has no way up.
        classes: logits of the unaltered image and of each task; None where the network has no classifier.
    """

    features: Float[Tensor, "n d"]
    map: Float[Tensor, "n 1 *s"] | None
    classes: Float[Tensor, "n k"] | None


class SyntheticAnomalyNet(nn.Module):
    """Levels of two convolutions with batch norm, down by maxima and up by linear interpolation; blocks from MONAI.

    Any size from the stride on, odd ones too. In eval mode nothing depends on the other images of a batch.

    Args:
        shape: architecture.
        generator: of the weights; a fresh one with seed 0 if not given.

    Raises:
        NotAvailableError: MONAI is missing.
    """

    def __init__(self, shape: SyntheticAnomalyShape, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.shape = shape
        two_conv, down, up = _blocks()
        widths, how = shape.widths, {"act": "relu", "norm": "batch", "bias": True}
        self.first = two_conv(shape.axes, shape.channels, widths[0], **how)
        self.down = nn.ModuleList(down(shape.axes, a, b, **how) for a, b in pairwise(widths))
        if shape.objective != "class":
            way = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
            self.up = nn.ModuleList(up(shape.axes, deep, fine, fine, upsample="nontrainable", **how) for deep, fine in way)
            self.last = (nn.Conv2d if shape.axes == 2 else nn.Conv3d)(widths[0], 1, 1)
        if shape.objective != "map":
            self.classifier = nn.Sequential(nn.Linear(widths[-1], widths[-1]), nn.ReLU(), nn.Linear(widths[-1], shape.classes))
        draw(self, generator if generator is not None else torch.Generator().manual_seed(0))

    def forward(self, x: Float[Tensor, "n c *s"]) -> Seen:
        """See images.

        Args:
            x: in [-1, 1].

        Raises:
            SignalError: a side is smaller than the stride, or channels or axes are not those of the network.
        """
        self._check(x)
        levels = [self.first(x)]
        for part in self.down:
            levels.append(part(levels[-1]))
        features = levels[-1].mean(dim=tuple(range(2, x.ndim)))
        classes = self.classifier(features) if self.shape.objective != "map" else None
        if self.shape.objective == "class":
            return Seen(features, None, classes)
        rising = levels[-1]
        for part, finer in zip(self.up, reversed(levels[:-1]), strict=True):
            rising = part(rising, finer)
        return Seen(features, self.last(rising), classes)

    def _check(self, x: Tensor) -> None:
        expected = (self.shape.channels, self.shape.axes)
        if (x.shape[1], x.ndim - 2) != expected:
            raise SignalError(f"images of shape {tuple(x.shape)} must have {expected[0]} channels and {expected[1]} axes of space")
        if min(x.shape[2:]) < self.shape.stride:
            raise SignalError(f"images of shape {tuple(x.shape)} are smaller than the {self.shape.stride} pixels of the network's stride")


def _blocks() -> tuple[Any, Any, Any]:
    try:
        from monai.networks.nets.basic_unet import Down, TwoConv, UpCat
    except ImportError as error:
        raise NotAvailableError(f"synthetic-anomaly networks need MONAI: pip install 'offmap[generative]' ({error})") from error
    return TwoConv, Down, UpCat
