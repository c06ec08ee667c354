"""Pieces of one image in another, with exact masks: cut and paste, interpolation, and seamless (Poisson) pasting."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Float, Int

from offmap.core.errors import ConfigError
from offmap.simulate.lesions import Planted, foreground, pick
from offmap.simulate.poisson import from_gradients

Pixels = Float[np.ndarray, "c *s"]
Other = Float[np.ndarray, "_ ..."]


def cut_paste(pixels: Pixels, other: Other, *, rng: np.random.Generator, size: tuple[float, float] = (0.1, 0.3)) -> Planted:
    """A rectangle (of a volume, a cuboid) of another image (or of the same one, from elsewhere), pasted as it is.

    Args:
        pixels: in [0, 1], ``(C, H, W)`` or ``(C, D, H, W)``.
        other: of the same shape; ``pixels`` itself gives a piece of the same image.
        rng: source of randomness.
        size: sides of the rectangle, drawn from this share of the image's sides.

    Raises:
        ConfigError: shapes differ, or the size is impossible.

    Source: Li et al., CVPR 2021, 2104.04015, section 2.2.
    """
    mask, piece = _cut(pixels, other, size, rng)
    return Planted(np.where(mask, piece, pixels).astype(np.float32), mask, MappingProxyType({"factor": 1.0, **_box(mask)}))


def interpolate(
    pixels: Pixels,
    other: Other,
    *,
    rng: np.random.Generator,
    size: tuple[float, float] = (0.1, 0.4),
    factor: tuple[float, float] = (0.3, 0.9),
) -> Planted:
    """A rectangle in which the image is mixed with another: ``(1 - factor) * own + factor * foreign``.

    Args:
        pixels, other, rng, size: as ``cut_paste``.
        factor: share of the foreign piece, drawn from this range.

    Source: Tan et al., Foreign Patch Interpolation, MELBA 2022, 2011.04197, eq. 1.
    """
    mask, piece = _cut(pixels, other, size, rng)
    share = float(rng.uniform(*factor))
    mixed = np.where(mask, (1.0 - share) * pixels + share * piece, pixels)
    return Planted(mixed.astype(np.float32), mask, MappingProxyType({"factor": share, **_box(mask)}))


def poisson(pixels: Pixels, other: Other, *, rng: np.random.Generator, size: tuple[float, float] = (0.1, 0.4)) -> Planted:
    """A rectangle with the gradients of another image and the border of its own: no seam tells where it is.

    Args:
        pixels, other, rng, size: as ``cut_paste``.

    Source: Perez et al., Poisson Image Editing, SIGGRAPH 2003, eq. 3; for anomalies Tan et al., MICCAI 2021, 2107.02622.
    """
    mask, piece = _cut(pixels, other, size, rng)
    box = tuple(slice(line[0] - 1, line[-1] + 2) for line in _lines(mask))
    pasted = pixels.astype(np.float64)
    for own, foreign in zip(pasted, piece.astype(np.float64), strict=True):
        own[box] = from_gradients(own[box], [np.diff(foreign[box], axis=axis) for axis in range(mask.ndim)])
    return Planted(np.clip(pasted, 0.0, 1.0).astype(np.float32), mask, MappingProxyType({"factor": 1.0, **_box(mask)}))


ANOMALIES: Mapping[str, Callable[..., Planted]] = MappingProxyType({"cut_paste": cut_paste, "interpolate": interpolate, "poisson": poisson})
"""All kinds by name."""


def _cut(pixels: Pixels, other: Other, size: tuple[float, float], rng: np.random.Generator) -> tuple[Bool[np.ndarray, "*s"], Pixels]:
    """Where to paste (never the outermost pixels), and the other image moved so that another place of it lies there."""
    if pixels.shape != other.shape:
        raise ConfigError(f"the other image has the shape {other.shape}, {pixels.shape} is needed")
    shape = pixels.shape[1:]
    if not 0 < size[0] <= size[1] <= 0.5 or min(shape) < 8:
        raise ConfigError(f"size = {size} must be two ends in (0, 0.5], and the image {shape} at least {' x '.join('8' for _ in shape)}")
    sides = [max(2, round(float(rng.uniform(*size)) * n)) for n in shape]
    centre, origin = pick(foreground(pixels), rng), pick(foreground(other), rng)
    start = [int(np.clip(c - side // 2, 1, n - side - 1)) for c, side, n in zip(centre, sides, shape, strict=True)]
    source = [int(np.clip(c - side // 2, 1, n - side - 1)) for c, side, n in zip(origin, sides, shape, strict=True)]
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(first, first + side) for first, side in zip(start, sides, strict=True))] = True
    return mask, np.roll(other, [to - by for to, by in zip(start, source, strict=True)], axis=range(1, other.ndim))


def _lines(mask: Bool[np.ndarray, "*s"]) -> list[Int[np.ndarray, " k"]]:
    """Positions that a box takes along each axis."""
    return [np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis))) for axis in range(mask.ndim)]


def _box(mask: Bool[np.ndarray, "*s"]) -> dict[str, float]:
    lines = _lines(mask)
    firsts = {name: float(line[0]) for name, line in zip(("front", "top", "left")[-mask.ndim :], lines, strict=True)}
    return firsts | {name: float(line.size) for name, line in zip(("depth", "height", "width")[-mask.ndim :], lines, strict=True)}
