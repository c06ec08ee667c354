"""PNG and JPEG, through Pillow; 16-bit PNG through imagecodecs, since Pillow would cut colour to 8 bits."""

import struct
from collections.abc import Iterator
from functools import partial
from io import BufferedIOBase
from typing import IO, cast

import numpy as np
import PIL.Image

from offmap.core.errors import ReadError
from offmap.core.types import Frame, Image
from offmap.read.limits import Limits, check_size
from offmap.read.parts import Part

_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
_ORIENTATION = 0x0112
_DEPTH_STEP = {1: 255, 2: 85, 4: 17}


def png_parts(file: BufferedIOBase, *, stored: int, limits: Limits) -> Iterator[Part]:
    """The one image of a PNG file.

    Raises:
        ReadError: the header is broken, the image too large or too small.
    """
    head = file.read(33)
    if len(head) < 33:
        raise ReadError("truncated", "the PNG header is cut off")
    width, height, depth, colour = struct.unpack(">IIBB", head[16:26])
    if head[12:16] != b"IHDR" or colour not in _PNG_CHANNELS:
        raise ReadError("unreadable", "the PNG header is broken")
    channels = _PNG_CHANNELS[colour]
    limits.check(width * height * channels, expanded=width * height * channels * max(1, depth // 8), stored=stored)
    check_size(height, width)
    yield Part("", partial(_png, file, depth, colour))


def jpeg_parts(file: BufferedIOBase, *, stored: int, limits: Limits) -> Iterator[Part]:
    """The one image of a JPEG file."""
    yield Part("", partial(_jpeg, file, stored, limits))


def image_of(pixels: np.ndarray, *, bits: int, file_format: str, orientation: int = 1) -> Image:
    """An image from rows, columns and channels.

    Args:
        pixels: ``(H, W)`` or ``(H, W, 3)``.
        bits: bits stored per sample.
        file_format: as ``Image.file_format``.
        orientation: EXIF code 1 to 8; other values count as 1.
    """
    upright = _oriented(pixels, orientation)
    channelled = upright[None] if upright.ndim == 2 else upright.transpose(2, 0, 1)
    return Image(channelled, "", Frame.whole(channelled.shape[1:]), bits=bits, file_format=file_format)


def _oriented(pixels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def onto_black(pixels: np.ndarray) -> np.ndarray:
    """``(H, W, 2 or 4)`` with straight alpha last -> ``(H, W)`` or ``(H, W, 3)`` of the same type, laid onto black."""
    alpha = pixels[..., -1:]
    top = float(np.iinfo(pixels.dtype).max) if pixels.dtype.kind in "iu" else 1.0
    colour = pixels[..., :-1]
    if bool((alpha != top).any()):
        laid = colour * (alpha / top)
        colour = (np.rint(laid) if pixels.dtype.kind in "iu" else laid).astype(pixels.dtype)
    return colour[..., 0] if colour.shape[-1] == 1 else colour


def _exif_orientation(image: PIL.Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return 1
    return value if isinstance(value, int) else 1


def _open(file: BufferedIOBase, kind: str) -> PIL.Image.Image:
    file.seek(0)
    try:
        return PIL.Image.open(cast("IO[bytes]", file), formats=(kind,))
    except PIL.Image.DecompressionBombError as error:
        raise ReadError("bomb", f"the {kind} is larger than Pillow's own limit") from error
    except (PIL.UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ReadError(_why(file, kind, error), f"the {kind} header cannot be read") from error


def _load(image: PIL.Image.Image, file: BufferedIOBase, kind: str) -> None:
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:
        reason = _why(file, kind, error)
        detail = "ends before its pixels do" if reason == "truncated" else f"cannot be decoded ({type(error).__name__})"
        raise ReadError(reason, f"the {kind} {detail}") from error


def _why(file: BufferedIOBase, kind: str, error: Exception) -> str:
    """``truncated`` when the decoder says so or the end marker is missing."""
    if "truncated" in str(error):
        return "truncated"
    file.seek(0)
    return "unreadable" if (b"IEND" if kind == "PNG" else b"\xff\xd9") in file.read() else "truncated"


def _png(file: BufferedIOBase, depth: int, colour: int) -> Image:
    image = _open(file, "PNG")
    if depth == 16:
        pixels = _png16(file)
    else:
        _load(image, file, "PNG")
        pixels = _plain(image)
        if depth in _DEPTH_STEP and colour == 0 and pixels.ndim == 2:
            pixels = pixels // _DEPTH_STEP[depth]
    bits = depth if colour != 3 else 8
    return image_of(pixels, bits=bits, file_format="png", orientation=_exif_orientation(image))


def _png16(file: BufferedIOBase) -> np.ndarray:
    import imagecodecs

    file.seek(0)
    data = file.read()
    if b"IEND" not in data[-4096:]:
        raise ReadError("truncated", "the PNG ends before its pixels do")
    try:
        pixels: np.ndarray = imagecodecs.png_decode(data)
    except Exception as error:
        raise ReadError("unreadable", f"the PNG cannot be decoded ({type(error).__name__})") from error
    return onto_black(pixels) if pixels.ndim == 3 and pixels.shape[-1] in (2, 4) else pixels


def _plain(image: PIL.Image.Image) -> np.ndarray:
    """``(H, W)`` or ``(H, W, 3)``, uint8: palettes looked up, alpha laid onto black, grey kept as one channel."""
    see_through = image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
    if image.mode in ("P", "PA"):
        pixels = np.array(image.convert("RGBA" if see_through else "RGB"))
        pixels = onto_black(pixels) if see_through else pixels
        return pixels[..., 0] if bool((pixels == pixels[..., :1]).all()) else pixels
    if image.mode == "1":
        return np.array(image.convert("L"))
    if see_through:
        grey = image.mode in ("L", "LA")
        laid = onto_black(np.array(image.convert("RGBA")))
        return laid[..., 0] if grey else laid
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    return np.array(image)


def _jpeg(file: BufferedIOBase, stored: int, limits: Limits) -> Image:
    image = _open(file, "JPEG")
    width, height = image.size
    values = width * height * len(image.getbands())
    limits.check(values, expanded=values, stored=stored)
    check_size(height, width)
    orientation = _exif_orientation(image) if "exif" in image.info else 1
    _load(image, file, "JPEG")
    return image_of(_plain(image), bits=8, file_format="jpeg", orientation=orientation)
