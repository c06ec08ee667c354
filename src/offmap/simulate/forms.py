"""File forms of the same content: another size, another compression. They are not out of distribution.

One random form an image, in fitting and calibrating alike, teaches a gate that file form is not content; the named forms
measure whether it learned it.
"""

import dataclasses
import hashlib
import io
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image as Pillow

from offmap.core.types import Image

SMALLEST = 64
"""Images with a shorter side below this are never halved."""

FILTERS = (Pillow.Resampling.BOX, Pillow.Resampling.BILINEAR, Pillow.Resampling.LANCZOS)
"""Antialiased reductions that other programs use."""


def random_form(image: Image, *, seed: int) -> Image:
    """One form of the image, drawn by its digest: native, half size, JPEG (quality 85 to 95), or half size and JPEG.

    The same image and seed always give the same form. Images of more than 8 bits, and volumes, are never JPEG; images
    with a shorter side below ``SMALLEST`` are never halved. The frame stays right, so that maps fit the image as read.

    Args:
        image: as read, before preparation.
        seed: of the gate.
    """
    name = image.digest or hashlib.sha256(np.ascontiguousarray(image.pixels).tobytes()).hexdigest()
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16], "big"))
    halve, compress = bool(rng.integers(2)), bool(rng.integers(2))
    quality, subsampling, reduction = int(rng.integers(85, 96)), int(rng.choice([0, 2])), FILTERS[rng.integers(len(FILTERS))]
    if halve and min(image.spatial[-2:]) >= SMALLEST:
        image = half(image, reduction=reduction)
    return jpeg(image, quality=quality, subsampling=subsampling) if compress and _eight_bit(image) is not None else image


def half(image: Image, *, reduction: Pillow.Resampling = Pillow.Resampling.LANCZOS) -> Image:
    """Half the height and width (odd sizes rounded up), antialiased; numbers rounded and kept in the image's own range."""
    height, width = image.spatial[-2:]
    size = ((height + 1) // 2, (width + 1) // 2)
    picture = _eight_bit(image)
    if picture is not None:
        pixels = _channels_first(np.asarray(Pillow.fromarray(picture).resize(size[::-1], reduction))).astype(image.pixels.dtype)
    else:
        pixels = _reduce(image.pixels, size, reduction)
    spacing = image.spacing
    if spacing is not None:
        spacing = (*spacing[:-2], spacing[-2] * height / size[0], spacing[-1] * width / size[1])
    mask = None if image.mask is None else image.mask[..., ::2, ::2]
    return dataclasses.replace(image, pixels=pixels, spacing=spacing, mask=mask)


def jpeg(image: Image, *, quality: int, subsampling: int = 2) -> Image:
    """Saved as JPEG and read again; images of more than 8 bits, and volumes, stay as they are.

    Args:
        image: as read.
        quality: 1..95, libjpeg's scale.
        subsampling: of colour: 0 = 4:4:4, 2 = 4:2:0.
    """
    picture = _eight_bit(image)
    if picture is None:
        return image
    file = io.BytesIO()
    Pillow.fromarray(picture).save(file, "JPEG", quality=quality, subsampling=subsampling)
    pixels = _channels_first(np.asarray(Pillow.open(file))).astype(image.pixels.dtype)
    return dataclasses.replace(image, pixels=pixels, file_format="jpeg" if image.file_format == "png" else image.file_format)


def png(image: Image) -> Image:
    """Saved as PNG and read again: the same pixels."""
    return dataclasses.replace(image, file_format="png" if image.file_format == "jpeg" else image.file_format)


def native(image: Image) -> Image:
    """As it is."""
    return image


def _half_jpeg(image: Image, quality: int) -> Image:
    return jpeg(half(image), quality=quality)


FORMS: Mapping[str, Callable[[Image], Image]] = MappingProxyType(
    {
        "native": native,
        "half": half,
        "png": png,
        "jpeg85": partial(jpeg, quality=85),
        "jpeg95": partial(jpeg, quality=95),
        "half_jpeg90": partial(_half_jpeg, quality=90),
    }
)
"""Deterministic forms for measuring."""


def _eight_bit(image: Image) -> UInt8[np.ndarray, "h w *c"] | None:
    """The picture as a program would save it, channels last; None for more than 8 bits, and for volumes."""
    pixels = image.pixels
    if pixels.ndim != 3 or image.file_format == "nifti" or image.bits != 8:
        return None
    if pixels.dtype != np.uint8:
        if pixels.min() < 0 or pixels.max() > 255 or bool((pixels != np.rint(pixels)).any()):
            return None
        if np.issubdtype(pixels.dtype, np.floating) and pixels.max() <= 1:
            return None
        pixels = pixels.astype(np.uint8)
    return np.ascontiguousarray(pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0))


def _channels_first(picture: UInt8[np.ndarray, "h w *c"]) -> UInt8[np.ndarray, "c h w"]:
    return picture[None] if picture.ndim == 2 else np.ascontiguousarray(picture.transpose(2, 0, 1))


def _reduce(pixels: Shaped[np.ndarray, "c *s"], size: tuple[int, int], reduction: Pillow.Resampling) -> Shaped[np.ndarray, "c *t"]:
    planes = pixels.reshape(-1, *pixels.shape[-2:]).astype(np.float32)
    small = np.stack([np.asarray(Pillow.fromarray(plane).resize(size[::-1], reduction)) for plane in planes])
    small = np.clip(small, planes.min(), planes.max()).reshape(*pixels.shape[:-2], *size)
    return np.asarray(small if np.issubdtype(pixels.dtype, np.floating) else np.rint(small).astype(pixels.dtype))
