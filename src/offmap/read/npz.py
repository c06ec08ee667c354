"""Arrays of an ``.npz`` file, one image at a time; never unpickles."""

import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from io import BufferedIOBase
from typing import cast

import numpy as np

from offmap.core.errors import ReadError
from offmap.core.types import Frame, Image
from offmap.read.limits import Limits, check_size
from offmap.read.parts import Part
from offmap.read.raster import onto_black

_STORAGE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def keys(file: BufferedIOBase) -> tuple[str, ...]:
    """Names of the arrays, in the order of the file.

    Raises:
        ReadError: the file is no ``.npz``.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return tuple(name[:-4] for name in archive.namelist() if name.endswith(".npy"))
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ReadError("truncated", "the zip directory of the .npz is missing or broken") from error


@dataclass(frozen=True)
class _Array:
    """A member of the archive, opened behind its header."""

    stream: BufferedIOBase
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool


def parts(file: BufferedIOBase, *, key: str, volume: bool, limits: Limits) -> Iterator[Part]:
    """One part an image: arrays ``(N, H, W)``, ``(N, H, W, 1|3|4)``, ``(H, W)``, volumes ``(N, D, H, W)``.

    Args:
        file: the archive.
        key: name of the array; empty = the only one.
        volume: whether ``(N, D, H, W)`` gives N volumes or N times D slices.

    Raises:
        ReadError: no such array, objects instead of numbers, an impossible shape, or a bomb.
    """
    names = keys(file)
    if key not in names and (key or len(names) != 1):
        raise ReadError("unsupported", f"name one array of the .npz as FILE.npz::KEY; it has: {', '.join(names[:20]) or 'none'}")
    archive = zipfile.ZipFile(file)
    info = archive.getinfo(f"{key or names[0]}.npy")
    if info.compress_type not in _STORAGE or info.flag_bits & 1:
        raise ReadError("unsupported", "the array is encrypted or compressed in a way that numpy does not write")
    array = _opened(archive, info)
    if info.compress_type != zipfile.ZIP_STORED:
        limits.check(0, expanded=_bytes(array.shape, array.dtype), stored=info.compress_size)
    if array.fortran:
        array = _in_c_order(array, limits)
    yield from _split(array, volume, limits)


def _bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def _opened(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Array:
    try:
        stream = archive.open(info)
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(stream)
    except (ValueError, zipfile.BadZipFile, EOFError, OSError, KeyError, TypeError) as error:
        raise ReadError("unreadable", "the array's header is broken") from error
    if dtype.hasobject or dtype.kind not in "buif" or dtype.itemsize > 8:
        raise ReadError("unsupported", "the array holds objects or numbers that are no pixels; it is never unpickled")
    if any(n < 0 for n in shape):
        raise ReadError("bad_geometry", "the array has a negative length")
    return _Array(cast(BufferedIOBase, stream), stream.tell(), tuple(int(n) for n in shape), dtype, bool(fortran))


def _in_c_order(array: _Array, limits: Limits) -> _Array:
    import io

    limits.check(math.prod(array.shape))
    flat = np.frombuffer(_bytes_at(array.stream, array.start, _bytes(array.shape, array.dtype)), array.dtype)
    ordered = np.ascontiguousarray(flat.reshape(array.shape, order="F"))
    return _Array(io.BytesIO(ordered.tobytes()), 0, array.shape, array.dtype, False)


def _split(array: _Array, volume: bool, limits: Limits) -> Iterator[Part]:
    shape = array.shape
    if len(shape) < 2 or len(shape) > 4:
        raise ReadError("unsupported", f"an array of shape {shape} is no (N, H, W), (N, H, W, 3) or (H, W)")
    channels = shape[-1] if len(shape) == 4 and shape[-1] in (1, 3, 4) else 0
    one = shape if len(shape) == 2 else shape[1:]
    spatial = one[:-1] if channels else one
    check_size(spatial[-2], spatial[-1])
    depth = 0 if len(spatial) == 2 else spatial[0]
    limits.check(math.prod(one if volume or not depth else one[1:]))
    count = 1 if len(shape) == 2 else shape[0]
    if not count or (len(spatial) == 3 and not depth):
        raise ReadError("no_pixels", f"the array of shape {shape} holds no image")
    size = _bytes(one, array.dtype)
    for index in range(count):
        label = "" if len(shape) == 2 else f"[{index}]"
        if depth and not volume:
            step = size // depth
            for z in range(depth):
                yield Part(f"{label}#{z}", partial(_image, array, index * size + z * step, spatial[1:], 0))
        else:
            yield Part(label, partial(_image, array, index * size, spatial, channels), name=f"{label}volume" if depth else "")


def _bytes_at(stream: BufferedIOBase, at: int, size: int) -> bytes:
    try:
        stream.seek(at)
        data = stream.read(size)
    except (EOFError, zipfile.BadZipFile, OSError) as error:
        raise ReadError("truncated", "the array ends before its pixels do, or its checksum is wrong") from error
    if len(data) < size:
        raise ReadError("truncated", "the array ends before its pixels do")
    return data


def _image(array: _Array, at: int, spatial: tuple[int, ...], channels: int) -> Image:
    shape = (*spatial, channels) if channels else spatial
    data = _bytes_at(array.stream, array.start + at, _bytes(shape, array.dtype))
    pixels = np.frombuffer(data, array.dtype).reshape(shape)
    bits = 1 if pixels.dtype == bool else 8 * pixels.dtype.itemsize
    pixels = pixels.astype(np.uint8 if bits == 1 else pixels.dtype.newbyteorder("="))
    if channels == 4:
        pixels = onto_black(pixels)
    elif channels == 1:
        pixels = pixels[..., 0]
    channelled = pixels.transpose(2, 0, 1) if channels in (3, 4) else pixels[None]
    return Image(channelled, "", Frame.whole(channelled.shape[1:]), bits=bits, file_format="npz")
