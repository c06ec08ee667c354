"""TIFF, page by page, through tifffile and imagecodecs."""

from collections.abc import Iterator
from functools import partial
from io import BufferedIOBase
from typing import Any

import numpy as np

from offmap.core.errors import ReadError
from offmap.core.types import Image
from offmap.read.limits import Limits, check_size
from offmap.read.parts import Part
from offmap.read.raster import image_of, onto_black

_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_JPEG = (6, 7)
_UNCOMPRESSED = 1


def parts(file: BufferedIOBase, *, stored: int, limits: Limits) -> Iterator[Part]:
    """One part a page; reduced copies of a page (thumbnails) are left out.

    Raises:
        ReadError: the file or its chain of pages is broken.
    """
    import tifffile

    try:
        tif = tifffile.TiffFile(file)
    except Exception as error:
        raise ReadError("truncated" if stored < 64 else "unreadable", f"the TIFF header cannot be read ({type(error).__name__})") from error
    pages = _pages(tif)
    first, second = next(pages, None), next(pages, None)
    for index, page in enumerate(_chain(first, second, pages)):
        suffix = "" if second is None else f"#{index}"
        yield Part(suffix, partial(_page, page, stored, limits), name=f"#{index}")


def _chain(first: Any, second: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield from (page for page in (first, second) if page is not None)
    yield from rest


def _pages(tif: Any) -> Iterator[Any]:
    """Pages at full size; a chain that leads back to itself or out of the file ends with an error."""
    seen: set[int] = set()
    index = 0
    while True:
        try:
            page = tif.pages.get(index, cache=False) if index else tif.pages.first
        except IndexError:
            return
        except Exception as error:
            raise ReadError("truncated", f"the directory of page {index} cannot be read ({type(error).__name__})") from error
        if page.offset in seen:
            raise ReadError("unreadable", f"the directory of page {index} leads back to an earlier page")
        seen.add(page.offset)
        if not page.is_reduced:
            yield page
        index += 1


def _page(page: Any, stored: int, limits: Limits) -> Image:
    height, width, samples = int(page.imagelength), int(page.imagewidth), int(page.samplesperpixel)
    if page.dtype is None or int(page.imagedepth) != 1:
        raise ReadError("unsupported", "the TIFF holds samples of a kind that offmap does not read")
    values = height * width * samples
    compressed = int(page.compression) != _UNCOMPRESSED
    limits.check(values, expanded=values * page.dtype.itemsize if compressed else 0, stored=stored)
    check_size(height, width)
    _check_complete(page, stored)
    try:
        pixels = page.asarray(maxworkers=1)
    except MemoryError:
        raise
    except Exception as error:
        reason = "unsupported" if "codec" in str(error) or isinstance(error, NotImplementedError) else "truncated"
        raise ReadError(reason, f"the TIFF page cannot be decoded ({type(error).__name__})") from error
    if int(page.planarconfig) == 2 and samples > 1:
        pixels = np.moveaxis(pixels.reshape(samples, height, width), 0, -1)
    pixels = _colour(pixels.reshape(height, width, samples), page)
    return image_of(pixels, bits=_bits(page), file_format="tiff", orientation=_orientation(page))


def _check_complete(page: Any, stored: int) -> None:
    """Every strip or tile lies inside the file; tifffile would fill missing ones with zeros."""
    spans = zip(page.dataoffsets, page.databytecounts, strict=False)
    if not page.dataoffsets or any(count <= 0 or offset + count > stored for offset, count in spans):
        raise ReadError("truncated", "the TIFF ends before its pixels do")


def _bits(page: Any) -> int:
    bits = page.bitspersample
    return int(bits if isinstance(bits, int) else max(bits))


def _orientation(page: Any) -> int:
    tag = page.tags.get(274)
    return int(tag.value) if tag is not None and isinstance(tag.value, int) else 1


def _colour(pixels: np.ndarray, page: Any) -> np.ndarray:
    """``(H, W, S)`` as stored -> ``(H, W)`` or ``(H, W, 3)``."""
    kind, samples = int(page.photometric), pixels.shape[-1]
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    if kind == _PALETTE and samples == 1 and page.colormap is not None:
        return _palette(pixels[..., 0], page.colormap)
    if kind in (_MINISBLACK, _MINISWHITE) and samples <= 2:
        grey = _without_alpha(pixels, page)
        return _inverted(grey, _bits(page)) if kind == _MINISWHITE else grey
    if (kind == _RGB and samples in (3, 4)) or (kind == _YCBCR and samples == 3 and int(page.compression) in _JPEG):
        return _without_alpha(pixels, page)
    if kind == _CMYK and samples == 4 and pixels.dtype == np.uint8:
        ink = pixels.astype(np.float32) / 255
        return np.rint(255 * (1 - ink[..., :3]) * (1 - ink[..., 3:])).astype(np.uint8)
    if kind in (_RGB, _PALETTE, _MINISBLACK, _MINISWHITE, _YCBCR):
        raise ReadError("bad_photometric", f"photometric interpretation {kind} with {samples} samples per pixel")
    raise ReadError("unsupported", f"photometric interpretation {kind} is not read")


def _without_alpha(pixels: np.ndarray, page: Any) -> np.ndarray:
    if pixels.shape[-1] in (1, 3):
        return pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    extra = [int(sample) for sample in page.extrasamples]
    if extra and extra[-1] == 2:
        return onto_black(pixels)
    colour = pixels[..., :-1]
    return colour[..., 0] if colour.shape[-1] == 1 else colour


def _palette(index: np.ndarray, colormap: np.ndarray) -> np.ndarray:
    if int(index.max()) >= colormap.shape[1]:
        raise ReadError("bad_photometric", "a pixel points past the end of the palette")
    table = (colormap >> 8).astype(np.uint8)
    colour = table[:, index].transpose(1, 2, 0)
    return colour[..., 0] if bool((colour == colour[..., :1]).all()) else colour


def _inverted(grey: np.ndarray, bits: int) -> np.ndarray:
    if grey.dtype.kind != "u":
        raise ReadError("unsupported", "white-is-zero with signed or floating-point samples is not read")
    inverted: np.ndarray = np.subtract((1 << bits) - 1, grey, dtype=grey.dtype)
    return inverted
