"""Heat maps: back onto the image as read, and over a viewable picture of it."""

import os
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32, Shaped, UInt8

from offmap.core.errors import ConfigError
from offmap.core.types import Frame, Image

INFERNO = np.array(
    [
        *((0, 0, 4), (11, 7, 36), (33, 12, 74), (61, 9, 101), (87, 16, 110), (113, 25, 110), (138, 34, 106), (163, 44, 97)),
        *((188, 55, 84), (210, 70, 68), (228, 90, 49), (241, 115, 29), (249, 142, 9), (252, 172, 17), (249, 203, 53)),
        *((242, 234, 105), (252, 255, 164)),
    ],
    dtype=np.float64,
)
"""Seventeen even steps of inferno (N. Smith and S. van der Walt, CC0): brightness rises evenly, readable when colour-blind."""

_FINE = np.stack([np.interp(np.linspace(0, 16, 1025), np.arange(17), channel) for channel in INFERNO.T], axis=1).astype(np.float32)

OPAQUE = 0.8
"""Share of the heat colour where the map is at its upper limit."""

DIM = 0.4
"""Brightness of what was not scored."""


def to_image(grid: Float[np.ndarray, "*g"], frame: Frame, *, mask: Bool[np.ndarray, "*m"] | None = None) -> Float32[np.ndarray, "*s"]:
    """A map on the grid of an encoder, brought onto the pixels of the image as read.

    Bilinear (trilinear for volumes) between the centres of the grid's cells, constant beyond the outermost centres. A
    pixel is NaN when its centre lies outside the frame (cropped away) or where the mask is False.

    Args:
        grid: ``(h, w)`` or ``(d, h, w)``, of any size, over the whole field of view of the prepared image.
        frame: of the prepared image.
        mask: of the prepared image, on its own grid; True = scored.

    Returns:
        float32 of ``frame.shape``, higher = odder.

    Raises:
        ConfigError: the axes of map, mask and frame differ in number.
    """
    for what, array in (("map", grid), ("mask", mask)):
        if array is not None and array.ndim != len(frame.shape):
            raise ConfigError(f"the {what} of shape {array.shape} does not fit an image of shape {frame.shape}")
    values = grid.astype(np.float32)
    outside = np.zeros(frame.shape, dtype=bool)
    for axis, (n, low, high) in enumerate(zip(frame.shape, frame.low, frame.high, strict=True)):
        centres = np.arange(n) + 0.5
        share = (centres - low) / (high - low)
        values = _between(values, axis, np.clip(share, 0.0, 1.0))
        if mask is not None:
            mask = np.take(mask, np.clip((share * mask.shape[axis]).astype(np.intp), 0, mask.shape[axis] - 1), axis=axis)
        beyond = (centres < low) | (centres > high)
        outside |= beyond.reshape([-1 if i == axis else 1 for i in range(len(frame.shape))])
    values[outside if mask is None else outside | ~mask] = np.nan
    return values


def peak_slice(volume: Float[np.ndarray, "d h w"]) -> int:
    """The slice that holds the largest value of a map (NaN ignored); the middle one if there is none."""
    if bool(np.isnan(volume).all()):
        return int(volume.shape[0]) // 2
    return int(np.unravel_index(int(np.nanargmax(volume)), volume.shape)[0])


def display(image: Image, *, side: int = 512, index: int | None = None) -> UInt8[np.ndarray, "h w *c"]:
    """A viewable 8-bit picture of an image as read: ``(H, W)`` grey or ``(H, W, 3)``.

    8-bit pixels as they are; else the file's own window; else the 0.5th to 99.5th percentile of the pixels above the minimum.

    Args:
        image: as read, or prepared (pixels in [0, 1]).
        side: longer side at most, in pixels; larger pictures are reduced (antialiased).
        index: slice of a volume; the middle one if not given.
    """
    pixels = image.pixels
    if pixels.ndim == 4:
        pixels = pixels[:, pixels.shape[1] // 2 if index is None else index]
    black, white = _levels(image, pixels)
    shown = np.clip((pixels.astype(np.float32) - black) * (255.0 / (white - black)), 0.0, 255.0)
    height, width = shown.shape[-2:]
    scale = min(1.0, side / max(height, width))
    if scale < 1:
        from PIL import Image as Pillow

        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        shown = np.stack([np.asarray(Pillow.fromarray(c).resize(size, Pillow.Resampling.BILINEAR)) for c in shown])
    picture = np.rint(shown).astype(np.uint8)
    return np.ascontiguousarray(picture[0] if picture.shape[0] == 1 else picture.transpose(1, 2, 0))


def overlay(picture: UInt8[np.ndarray, "h w *c"], heat: Float[np.ndarray, "p q"], *, low: float, high: float) -> UInt8[np.ndarray, "h w 3"]:
    """A heat map over a picture: the odder, the brighter and the less transparent; what was not scored is dimmed.

    Args:
        picture: grey or RGB.
        heat: over the same field of view as the picture, of any size; NaN = not scored.
        low, high: values that are shown fully transparent and at full strength.

    Raises:
        ConfigError: not ``low < high``, both finite.
    """
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ConfigError(f"the limits low = {low}, high = {high} of an overlay must be finite and rising")
    base = (picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=-1)).astype(np.float32)
    sampled = _nearest(heat.astype(np.float32, copy=False), base.shape[:2])
    scored = ~np.isnan(sampled)
    strength = np.clip((np.where(scored, sampled, low) - low) / (high - low), 0.0, 1.0)
    colour = _FINE[np.rint(strength * (len(_FINE) - 1)).astype(np.intp)]
    alpha = OPAQUE * strength[..., None]
    mixed = np.where(scored[..., None], (1.0 - alpha) * base + alpha * colour, DIM * base)
    return np.rint(mixed).astype(np.uint8)


def save_png(path: Path, picture: UInt8[np.ndarray, "h w *c"]) -> None:
    """Write a picture as PNG; the file appears whole or not at all."""
    from PIL import Image as Pillow

    part = path.with_name(path.name + ".part")
    try:
        Pillow.fromarray(picture).save(part, "PNG")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _between(values: Float32[np.ndarray, "*g"], axis: int, share: Float[np.ndarray, " n"]) -> Float32[np.ndarray, "*t"]:
    """Linear interpolation along one axis at shares (0 = first edge, 1 = last edge) of its length."""
    cells = values.shape[axis]
    place = np.clip(share * cells - 0.5, 0.0, cells - 1.0)
    first = np.minimum(place.astype(np.intp), max(cells - 2, 0))
    weight = (place - first).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(values.ndim)])
    start, stop = np.take(values, first, axis=axis), np.take(values, np.minimum(first + 1, cells - 1), axis=axis)
    return np.asarray(start + weight * (stop - start), dtype=np.float32)


def _nearest(values: Float[np.ndarray, "p q"], size: tuple[int, ...]) -> Float[np.ndarray, "h w"]:
    rows, columns = (((np.arange(n) + 0.5) * (old / n)).astype(np.intp) for n, old in zip(size, values.shape, strict=True))
    return values[np.ix_(rows, columns)]


def _levels(image: Image, pixels: Shaped[np.ndarray, "c h w"]) -> tuple[float, float]:
    """Which numbers are shown black and white."""
    if pixels.dtype == np.uint8:
        top = 2.0 ** min(image.bits, 8) - 1
        return 0.0, top if pixels.max() <= top else 255.0
    low, high = float(pixels.min()), float(pixels.max())
    if np.issubdtype(pixels.dtype, np.floating) and low >= 0 and high <= 1:
        return 0.0, 1.0
    if image.bits == 8 and low >= 0 and high <= 255:
        return 0.0, 255.0
    if image.window is not None and image.window[1] > 0:
        centre, width = image.window
        return centre - width / 2, centre + width / 2
    body = pixels[pixels > low]
    if body.size == 0:
        return low, low + 1.0
    black, white = (float(v) for v in np.percentile(body, [0.5, 99.5]))
    return (black, white) if white > black else (low, high)
