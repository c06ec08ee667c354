"""A small network that gives one number an image as the mean of a map."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offmap.core.errors import ConfigError, SignalError
from offmap.represent.nets.architecture import Architecture


@dataclass(frozen=True, slots=True)
class StudentShape(Architecture):
    """Architecture of the student.

    Args:
        channels: of the images, 1 or 3.
        axes: of space, 2 or 3.
        widths: channels of each level, multiples of 8; each level halves the grid.
    """

    what: ClassVar[str] = "student"

    channels: int = 1
    axes: int = 2
    widths: tuple[int, ...] = (16, 32, 64)

    def __post_init__(self) -> None:
        if self.channels not in (1, 3) or self.axes not in (2, 3):
            raise ConfigError(f"channels = {self.channels} must be 1 or 3, axes = {self.axes} must be 2 or 3")
        if not 1 <= len(self.widths) <= 6 or any(w < 8 or w % 8 for w in self.widths):
            raise ConfigError(f"widths = {self.widths} must be one to six multiples of 8")

    @property
    def stride(self) -> int:
        """By how much the map is smaller than the image."""
        return int(2 ** len(self.widths))


class Student(nn.Module):
    """Two 3 x 3 convolutions a level, the second one with stride 2, and SiLU; then one number a place.

    Nothing is normalised inside: how strong a change is, is what the student must tell.

    Args:
        shape: architecture.
        generator: of the weights; a fresh one with seed 0 if not given.
    """

    def __init__(self, shape: StudentShape, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.shape = shape
        conv = nn.Conv2d if shape.axes == 2 else nn.Conv3d
        parts: list[nn.Module] = []
        before = shape.channels
        for width in shape.widths:
            for stride in (1, 2):
                parts += [conv(before, width, 3, stride, 1), nn.SiLU()]
                before = width
        self.body = nn.Sequential(*parts)
        self.head: nn.Module = conv(before, 1, 1)
        rng = generator if generator is not None else torch.Generator().manual_seed(0)
        for part in self.modules():
            if isinstance(part, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu", generator=rng)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def forward(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n 1 *t"]:
        """The map of images in [-1, 1]; its mean is the score.

        Raises:
            SignalError: a side is smaller than the stride, or channels or axes are not those of the network.
        """
        shape = self.shape
        if (x.shape[1], x.ndim - 2) != (shape.channels, shape.axes) or min(x.shape[2:]) < shape.stride:
            raise SignalError(
                f"images of shape {tuple(x.shape)} must have {shape.channels} channels and {shape.axes} axes of space of at least "
                f"{shape.stride} pixels"
            )
        found: Tensor = self.head(self.body(x))
        return found
