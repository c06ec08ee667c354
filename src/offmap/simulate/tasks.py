"""Tasks from which a network learns what is odd: a normal image or volume is altered, and each pixel has a label of how much."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Float32

from offmap.core.errors import ConfigError
from offmap.simulate.lesions import LesionRanges, foreground, pick, plant_lesion
from offmap.simulate.poisson import from_gradients
from offmap.simulate.texture import rise

Pixels = Float[np.ndarray, "c *s"]
Piece = Float[np.ndarray, "_ ..."]
Region = Bool[np.ndarray, "*s"]
Box = tuple[slice, ...]

SMALLEST = 8
"""Least side of an image."""

SEEN = 1 / 255
"""Change of brightness from which a pixel counts as altered where the label follows the change."""

DRAWS = 8
"""Attempts until something is seen to change."""


@dataclass(frozen=True, eq=False)
class Altered:
    """An image that a task altered.

    Args:
        pixels: in [0, 1], ``(C, H, W)`` or ``(C, D, H, W)``.
        labels: how odd each pixel is, in [0, 1]; 0 outside the mask.
        mask: True exactly where something was put; outside, the pixels are those of the given image.
        task: name of the task: the class.
    """

    pixels: Float32[np.ndarray, "c *s"]
    labels: Float32[np.ndarray, "*s"]
    mask: Bool[np.ndarray, "*s"]
    task: str


@dataclass(frozen=True, eq=False)
class Pair:
    """An image to be altered, and one that gives what is foreign, both with their foreground."""

    own: Pixels
    other: Pixels
    body: Region
    other_body: Region


@dataclass(frozen=True)
class Task(ABC):
    """A way of altering images; all randomness comes from the generator."""

    name: ClassVar[str] = ""
    reference: ClassVar[str] = ""

    def alter(self, images: Sequence[Pixels], rng: np.random.Generator, *, bodies: Sequence[Region] = ()) -> Altered:
        """Alter the first image.

        Args:
            images: two or more of one shape, in [0, 1], with 1 or 3 channels; what is foreign comes from one of those after the first.
            rng: source of randomness.
            bodies: foreground of each image, in which alterations lie; found where not given.

        Raises:
            ConfigError: fewer than two images, of several shapes, of other channels, or with a side below 8 pixels.
        """
        shapes = {image.shape for image in images}
        if len(images) < 2 or len(shapes) > 1:
            raise ConfigError(f"the task {self.name} needs two or more images of one shape; {len(images)} of shapes {sorted(shapes)} given")
        if images[0].shape[0] not in (1, 3) or min(images[0].shape[1:]) < SMALLEST:
            raise ConfigError(f"images of shape {images[0].shape} must have 1 or 3 channels and sides of {SMALLEST} pixels or more")
        which = 1 + int(rng.integers(len(images) - 1))
        masks = [bodies[i] if len(bodies) else foreground(images[i]) for i in (0, which)]
        pair = Pair(images[0].astype(np.float64), images[which].astype(np.float64), *masks)
        for _ in range(DRAWS):
            found = self.draw(pair, rng)
            if bool((np.abs(found.pixels - images[0]) > SEEN).any()):
                break
        return found

    @abstractmethod
    def draw(self, pair: Pair, rng: np.random.Generator) -> Altered:
        """One attempt, which may happen to change nothing that is seen."""

    def _put(self, pair: Pair, changed: Pixels, mask: Region, label: float | Float[np.ndarray, "*s"]) -> Altered:
        """The image with other pixels inside the mask."""
        pixels = np.where(mask, np.clip(changed, 0.0, 1.0), pair.own).astype(np.float32)
        return Altered(pixels, np.where(mask, label, 0.0).astype(np.float32), mask, self.name)


@dataclass(frozen=True, eq=False)
class _Place:
    """Where a foreign piece goes.

    Args:
        box: with a border of one pixel.
        piece: what is foreign, of the size of the box.
        mask: of the whole image: the box without its border, where either of the two images shows something.
    """

    box: Box
    piece: Piece
    mask: Region


@dataclass(frozen=True)
class FPI(Task):
    """A rectangle (of a volume, a cuboid) is mixed with another image's, ``(1 - a) own + a foreign``; the label is a.

    Args:
        size: sides of the rectangle, share of the image's.
        factor: a is drawn from this range.
    """

    size: tuple[float, float] = (0.1, 0.4)
    factor: tuple[float, float] = (0.05, 0.95)

    name: ClassVar[str] = "fpi"
    reference: ClassVar[str] = "Tan et al., Detecting Outliers with Foreign Patch Interpolation (FPI), MELBA 2022, arXiv 2011.04197, eq. 1"

    def draw(self, pair: Pair, rng: np.random.Generator) -> Altered:
        place, share = _place(pair, _sides(pair, self.size, rng), rng), float(rng.uniform(*self.factor))
        changed = pair.own.copy()
        changed[:, *place.box] = (1.0 - share) * pair.own[:, *place.box] + share * place.piece
        return self._put(pair, changed, place.mask, share)


@dataclass(frozen=True)
class PII(Task):
    """A rectangle is blended without a seam; each gradient is the larger of ``(1 - a) own`` and ``a foreign``; the label is a.

    Args:
        size: sides of the rectangle, share of the image's.
        factor: a is drawn from this range.
    """

    size: tuple[float, float] = (0.1, 0.4)
    factor: tuple[float, float] = (0.05, 0.95)

    name: ClassVar[str] = "pii"
    reference: ClassVar[str] = "Tan et al., Detecting Outliers with Poisson Image Interpolation (PII), MICCAI 2021, arXiv 2107.02622"

    def draw(self, pair: Pair, rng: np.random.Generator) -> Altered:
        place, share = _place(pair, _sides(pair, self.size, rng), rng), float(rng.uniform(*self.factor))
        changed = pair.own.copy()
        for channel, piece in zip(changed, place.piece, strict=True):
            own = channel[place.box]
            pairs = ((np.diff(own, axis=i), np.diff(piece, axis=i)) for i in range(own.ndim))
            channel[place.box] = from_gradients(own, [_larger((1.0 - share) * mine, share * foreign) for mine, foreign in pairs])
        return self._put(pair, changed, place.mask, share)


@dataclass(frozen=True)
class NSA(Task):
    """A foreign rectangle, resized, is blended without a seam; the label is a logistic function of the change, 0 where none is seen.

    Args:
        size: least and largest side of the rectangle, share of the image's; between them ``least`` plus a gamma variate.
        scale: by how much the foreign piece is enlarged.
        mixed: take the larger of the two images' gradients at each pixel; else those of the foreign piece.
        steepness, middle: of the label ``1 / (1 + exp(-steepness (|change| - middle)))``.
    """

    size: tuple[float, float] = (0.06, 0.4)
    scale: tuple[float, float] = (0.7, 1.3)
    mixed: bool = False
    steepness: float = 21.0
    middle: float = 0.094

    name: ClassVar[str] = "nsa"
    reference: ClassVar[str] = "Schlueter et al., Natural Synthetic Anomalies (NSA), ECCV 2022, arXiv 2109.15222"

    def draw(self, pair: Pair, rng: np.random.Generator) -> Altered:
        low, high = self.size
        sides = tuple(_pixels(min(high, low + float(rng.gamma(2.0, 0.08))), n) for n in pair.own.shape[1:])
        place = _place(pair, sides, rng, scale=float(rng.uniform(*self.scale)))
        changed = pair.own.copy()
        for channel, piece in zip(changed, place.piece, strict=True):
            own = channel[place.box]
            slopes = [np.diff(piece, axis=i) for i in range(own.ndim)]
            if self.mixed:
                slopes = [_larger(np.diff(own, axis=i), slope) for i, slope in enumerate(slopes)]
            channel[place.box] = from_gradients(own, slopes)
        return _by_change(self, pair, changed, place.mask, self.steepness, self.middle)


@dataclass(frozen=True)
class CutPaste(Task):
    """A rectangle of the image itself, with other brightness, is pasted elsewhere; the label is 1.

    Args:
        area: of the rectangle, share of the image's; of a cuboid, its volume.
        aspect: height to width, or width to height; further sides of a cuboid lie between them.
        jitter: factor of brightness, up to this much more or less.
        foreign: take the piece from another image.
    """

    area: tuple[float, float] = (0.02, 0.15)
    aspect: tuple[float, float] = (0.3, 1.0)
    jitter: float = 0.1
    foreign: bool = False

    name: ClassVar[str] = "cutpaste"
    reference: ClassVar[str] = "Li et al., CutPaste, CVPR 2021, arXiv 2104.04015, section 2.2"

    def draw(self, pair: Pair, rng: np.random.Generator) -> Altered:
        area, aspect = float(rng.uniform(*self.area)), float(rng.uniform(*self.aspect))
        side, stretch = area ** (1 / (pair.own.ndim - 1)), math.sqrt(aspect)
        shares = [side * stretch, *[side] * (pair.own.ndim - 3), side / stretch]
        shares = shares[::-1] if rng.random() < 0.5 else shares
        sides = tuple(_pixels(min(0.7, share), n) for share, n in zip(shares, pair.own.shape[1:], strict=True))
        place = _place(pair if self.foreign else Pair(pair.own, pair.own, pair.body, pair.body), sides, rng)
        changed = pair.own.copy()
        changed[:, *place.box] = float(rng.uniform(1 - self.jitter, 1 + self.jitter)) * place.piece
        return self._put(pair, changed, place.mask, 1.0)


@dataclass(frozen=True)
class CutPasteScar(Task):
    """A thin, turned strip (of a volume, a rod) of the image itself, with other brightness, is pasted elsewhere in the foreground; the
    label is 1.

    The strip shows what lies under it when it is moved, not turned. At least 1 pixel wide and 3 pixels long.

    Args:
        width, length: of the strip, share of the shorter side.
        turn: up to this many degrees either way from the first axis of space, of a rod towards any side.
        jitter: factor of brightness, up to this much more or less.
    """

    width: tuple[float, float] = (2 / 256, 16 / 256)
    length: tuple[float, float] = (10 / 256, 25 / 256)
    turn: float = 45.0
    jitter: float = 0.1

    name: ClassVar[str] = "cutpaste_scar"
    reference: ClassVar[str] = "Li et al., CutPaste (scar), CVPR 2021, arXiv 2104.04015, section 2.2"

    def draw(self, pair: Pair, rng: np.random.Generator) -> Altered:
        shape = pair.own.shape[1:]
        wide, long = (max(least, float(rng.uniform(*r)) * min(shape)) for least, r in ((1.0, self.width), (3.0, self.length)))
        angle = math.radians(float(rng.uniform(-self.turn, self.turn)))
        centre, origin = pick(pair.body, rng), pick(pair.body, rng)
        aside = _unit(len(shape) - 1, rng)
        offsets = np.stack([g - c for g, c in zip(np.indices(shape), centre, strict=True)])
        along = np.tensordot([math.cos(angle), *(math.sin(angle) * aside)], offsets, axes=1)
        across = np.sqrt(np.maximum((offsets**2).sum(axis=0) - along**2, 0.0))
        mask = (np.abs(along) <= long / 2) & (across <= wide / 2)
        moved = np.roll(pair.own, [c - o for c, o in zip(centre, origin, strict=True)], axis=range(1, pair.own.ndim))
        factor = float(rng.uniform(1 - self.jitter, 1 + self.jitter))
        return self._put(pair, factor * moved, mask & pair.body, 1.0)


@dataclass(frozen=True)
class Warp(Task):
    """The inside of a disc (of a volume, a ball) swells or shrinks smoothly; the label follows the change as that of NSA.

    Args:
        radius: of the disc, share of the shorter side.
        strength: how far pixels move at most, share of their distance to the centre.
        steepness, middle: as of ``NSA``.
    """

    radius: tuple[float, float] = (0.1, 0.25)
    strength: tuple[float, float] = (0.3, 0.8)
    steepness: float = 21.0
    middle: float = 0.094

    name: ClassVar[str] = "warp"
    reference: ClassVar[str] = "Baugh et al., Many Tasks Make Light Work (deformation), MICCAI 2023, arXiv 2307.00899; form of its own"

    def draw(self, pair: Pair, rng: np.random.Generator) -> Altered:
        from scipy import ndimage

        shape = pair.own.shape[1:]
        radius = max(3.0, float(rng.uniform(*self.radius)) * min(shape))
        centre, amount = pick(pair.body, rng), float(rng.uniform(*self.strength)) * float(rng.choice([-1.0, 1.0]))
        offsets = np.stack([g - c for g, c in zip(np.indices(shape), centre, strict=True)])
        distance = np.linalg.norm(offsets, axis=0)
        move = amount * rise(distance, radius, 0.0)
        places = [c + d * (1.0 + move) for c, d in zip(centre, offsets, strict=True)]
        changed = np.stack([ndimage.map_coordinates(channel, places, order=1, mode="nearest") for channel in pair.own])
        return _by_change(self, pair, changed, distance < radius, self.steepness, self.middle)


@dataclass(frozen=True)
class Intensity(Task):
    """A soft blob inside the foreground becomes brighter or darker; the label follows the change as that of NSA.

    Args:
        radius: of the blob, share of the shorter side.
        contrast: change of brightness in its middle.
        steepness, middle: as of ``NSA``.
    """

    radius: tuple[float, float] = (0.06, 0.2)
    contrast: tuple[float, float] = (0.1, 0.4)
    steepness: float = 21.0
    middle: float = 0.094

    name: ClassVar[str] = "intensity"
    reference: ClassVar[str] = "Baugh et al., Many Tasks Make Light Work (intensity), MICCAI 2023, arXiv 2307.00899; form of its own"

    def draw(self, pair: Pair, rng: np.random.Generator) -> Altered:
        ranges = LesionRanges(radius=self.radius, contrast=self.contrast, edge=(0.3, 1.0), texture=(0.0, 0.15))
        planted = plant_lesion(pair.own, rng=rng, ranges=ranges, where=pair.body)
        return _by_change(self, pair, planted.pixels.astype(np.float64), planted.mask & pair.body, self.steepness, self.middle)


TASKS: Mapping[str, Task] = MappingProxyType(
    {task.name: task for task in (FPI(), PII(), NSA(), CutPaste(), CutPasteScar(), Warp(), Intensity())}
)
"""All tasks by name."""


def _by_change(task: Task, pair: Pair, changed: Pixels, where: Region, steepness: float, middle: float) -> Altered:
    """Altered where the change is seen; its label is a logistic function of the mean change over channels."""
    change = np.abs(np.clip(changed, 0.0, 1.0) - pair.own).mean(axis=0)
    return task._put(pair, changed, where & (change > SEEN), 1.0 / (1.0 + np.exp(-steepness * (change - middle))))


def _pixels(share: float, side: int) -> int:
    """At least 2, and so that a border of one pixel fits around it."""
    return int(np.clip(round(share * side), 2, side - 2))


def _sides(pair: Pair, size: tuple[float, float], rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(_pixels(float(rng.uniform(*size)), n) for n in pair.own.shape[1:])


def _place(pair: Pair, sides: tuple[int, ...], rng: np.random.Generator, *, scale: float = 1.0) -> _Place:
    """A box about a pixel of the own foreground, and one of the other image about a pixel of its foreground."""
    shape = pair.own.shape[1:]
    box = _around(pick(pair.body, rng), sides, shape)
    source = tuple(int(np.clip(round(side / scale), 2, n - 2)) for side, n in zip(sides, shape, strict=True))
    cut = _around(pick(pair.other_body, rng), source, shape)
    piece, shown = pair.other[:, *cut], pair.other_body[cut]
    if source != sides:
        piece, shown = _resized(piece, sides), _resized(shown[None].astype(np.float64), sides)[0] > 0.5
    inside = np.zeros(shape, dtype=bool)
    inside[box] = pair.body[box] | shown
    frame = np.zeros(shape, dtype=bool)
    frame[tuple(slice(line.start + 1, line.stop - 1) for line in box)] = True
    mask = inside & frame
    return _Place(box, piece, mask if bool(mask.any()) else frame)


def _around(centre: tuple[int, ...], sides: tuple[int, ...], shape: tuple[int, ...]) -> Box:
    """The box of these sides about the centre, inside the image, with a border of one pixel."""
    starts = [int(np.clip(c - side // 2, 1, n - side - 1)) for c, side, n in zip(centre, sides, shape, strict=True)]
    return tuple(slice(start - 1, start + side + 1) for start, side in zip(starts, sides, strict=True))


def _resized(piece: Piece, sides: tuple[int, ...]) -> Piece:
    """Linear along each axis, to the sides with a border of one pixel."""
    from scipy import ndimage

    lines = [np.linspace(0.0, n - 1.0, side + 2) for n, side in zip(piece.shape[1:], sides, strict=True)]
    places = np.meshgrid(*lines, indexing="ij")
    return np.stack([ndimage.map_coordinates(channel, places, order=1) for channel in piece])


def _unit(axes: int, rng: np.random.Generator) -> Float[np.ndarray, " a"]:
    """A direction, drawn where there is a choice."""
    if axes == 1:
        return np.ones(1)
    drawn = rng.standard_normal(axes)
    return np.asarray(drawn / np.linalg.norm(drawn))


def _larger(one: Float[np.ndarray, "*s"], other: Float[np.ndarray, "*s"]) -> Float[np.ndarray, "*s"]:
    return np.where(np.abs(one) > np.abs(other), one, other)
