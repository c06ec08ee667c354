"""Square field of view."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np

from offmap.core.errors import ConfigError
from offmap.core.types import Frame, Image
from offmap.prepare.preparation import Step


@dataclass(frozen=True)
class Crop(Step):
    """Make height and width equal, around the centre; the slices of a volume all stay.

    Args:
        mode: ``crop`` cuts the longer side (what is cut is not scored, and its map is NaN); ``pad`` adds to the shorter
            one, so that everything is scored.
        fill: value of added pixels, in the units of the pixels at this step (0 = black after windowing).
    """

    mode: Literal["crop", "pad"] = "crop"
    fill: float = 0.0

    def __post_init__(self) -> None:
        if not np.isfinite(self.fill):
            raise ConfigError(f"crop: fill = {self.fill} must be finite")

    def __call__(self, image: Image) -> Image:
        """As ``Step``; nothing is refused."""
        height, width = image.spatial[-2:]
        if height == width:
            return image
        side = min(height, width) if self.mode == "crop" else max(height, width)
        starts = ((height - side) // 2, (width - side) // 2)
        return dataclasses.replace(
            image,
            pixels=_cut(image.pixels, starts, side, self.fill),
            mask=None if image.mask is None else _cut(image.mask, starts, side, 0.0),
            frame=_frame(image.frame, image.spatial, starts, side),
        )

    def describe(self) -> str:
        """In words."""
        return "centre square of the image" if self.mode == "crop" else f"padded to a square with {self.fill:g}"


def _cut(array: np.ndarray, starts: tuple[int, int], side: int, fill: float) -> np.ndarray:
    """The square that starts at ``starts`` (negative: before the array) on the last two axes."""
    before = [max(0, -s) for s in starts]
    after = [max(0, s + side - n) for s, n in zip(starts, array.shape[-2:], strict=True)]
    top, left = (max(0, s) for s in starts)
    cut = array[..., top : top + side, left : left + side]
    if not any(before + after):
        return cut
    return np.pad(cut, [(0, 0)] * (array.ndim - 2) + list(zip(before, after, strict=True)), constant_values=fill)


def _frame(frame: Frame, spatial: tuple[int, ...], starts: tuple[int, int], side: int) -> Frame:
    low, high = list(frame.low), list(frame.high)
    for axis, start in zip((-2, -1), starts, strict=True):
        step = (frame.high[axis] - frame.low[axis]) / spatial[axis]
        low[axis] = frame.low[axis] + step * start
        high[axis] = frame.low[axis] + step * (start + side)
    return Frame(frame.shape, tuple(low), tuple(high))
