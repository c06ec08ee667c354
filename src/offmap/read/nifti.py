"""NIfTI-1 and NIfTI-2 in one file, plain or gzipped.

nibabel reads the header; the voxels are read here, so that a gzip bomb expands no further than the header says.
Voxels are put into the order in which DICOM shows an axial slice: ``D`` from feet to head, ``H`` from front to back,
``W`` from the patient's right to left (RAS+ with the first two axes reversed).
"""

import gzip
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from io import BufferedIOBase
from typing import Any, cast

import numpy as np

from offmap.core.errors import ReadError
from offmap.core.types import Frame, Image
from offmap.read.limits import Limits, check_size
from offmap.read.parts import Part

_MM = {"mm": 1.0, "unknown": 1.0, "meter": 1000.0, "micron": 0.001}
_MAX_OFFSET = 64 << 20
HEAD = 352
"""Bytes that ``matches`` needs."""


def matches(head: bytes) -> bool:
    """Whether the first 352 (expanded) bytes are those of a NIfTI file of one piece."""
    return head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0"


@dataclass(frozen=True)
class _Nifti:
    """What the header says, checked."""

    stream: BufferedIOBase
    shape: tuple[int, int, int]
    times: int
    dtype: np.dtype
    offset: int
    slope: float
    inter: float
    orientation: np.ndarray
    spacing: tuple[float, float, float]

    @property
    def volume_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def parts(file: BufferedIOBase, *, stored: int, volume: bool, limits: Limits) -> Iterator[Part]:
    """One part an axial slice, or one a volume (several when the file is 4-D).

    Raises:
        ReadError: the header is broken, the geometry impossible, the file truncated or a bomb.
    """
    file.seek(0)
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    stream = cast("BufferedIOBase", gzip.GzipFile(fileobj=file)) if packed else file
    nifti = _header(stream)
    limits.check(math.prod(nifti.shape) * (3 if nifti.dtype.names else 1))
    expanded = nifti.offset + nifti.volume_bytes * nifti.times
    if packed:
        limits.check(0, expanded=expanded, stored=stored)
    elif expanded > stored:
        raise ReadError("truncated", f"the file has {stored:,} bytes, its header asks for {expanded:,}")
    oriented = _spatial(nifti)
    check_size(oriented[1], oriented[2])
    yield from _volumes(nifti) if volume else _slices(nifti, oriented[0])


def _volumes(nifti: _Nifti) -> Iterator[Part]:
    for time in range(nifti.times):
        suffix = f"#{time}" if nifti.times > 1 else ""
        yield Part(suffix, partial(_volume, nifti, time), name=f"volume{time}")


def _slices(nifti: _Nifti, depth: int) -> Iterator[Part]:
    """Slices of one volume share its voxels, which are dropped with the last of them."""
    count = depth * nifti.times
    for time in range(nifti.times):
        held: dict[int, Image] = {}
        for z in range(depth):
            index = time * depth + z
            yield Part(f"#{index}" if count > 1 else "", partial(_slice, nifti, time, z, held), name=f"#{index}")


def _slice(nifti: _Nifti, time: int, z: int, held: dict[int, Image]) -> Image:
    if time not in held:
        held[time] = _volume(nifti, time)
    whole = held[time]
    pixels = whole.pixels[:, z]
    spacing = whole.spacing[1:] if whole.spacing else None
    return Image(pixels, "", Frame.whole(pixels.shape[1:]), spacing=spacing, bits=whole.bits, file_format="nifti")


def _header(stream: BufferedIOBase) -> _Nifti:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    head = _read(stream, 0, 4)
    two = int.from_bytes(head, "little") == 540 or int.from_bytes(head, "big") == 540
    raw = _read(stream, 0, 540 if two else 348)
    try:
        header = (Nifti2Header if two else Nifti1Header)(raw, check=False)
        dims = [int(n) for n in header["dim"]]
        dtype = header.get_data_dtype()
        slope, inter = header.get_slope_inter()
        offset = float(header["vox_offset"])
    except Exception as error:
        raise ReadError("unreadable", f"the NIfTI header is broken ({type(error).__name__})") from error
    shape, times = _shape(dims)
    if not 0 <= offset <= _MAX_OFFSET:
        raise ReadError("unreadable", "the NIfTI header says that voxels begin at an impossible place")
    if (dtype.kind not in "buif" and dtype.names not in (("R", "G", "B"), ("R", "G", "B", "A"))) or dtype.itemsize > 8:
        raise ReadError("unsupported", "NIfTI voxels that are complex or of extended precision are not read")
    orientation, spacing = _geometry(header, min(3, dims[0]))
    start = max(int(offset), len(raw))
    return _Nifti(stream, shape, times, dtype, start, 1.0 if slope is None else slope, inter or 0.0, orientation, spacing)


def _shape(dims: list[int]) -> tuple[tuple[int, int, int], int]:
    if not 2 <= dims[0] <= 7 or any(n < 1 for n in dims[1 : dims[0] + 1]):
        raise ReadError("bad_geometry", "the NIfTI header has an impossible number of axes, or an axis without length")
    sizes = dims[1 : dims[0] + 1] + [1] * (7 - dims[0])
    if any(n > 1 for n in sizes[4:]):
        raise ReadError("unsupported", "NIfTI with more than four axes (vectors, tensors) is not read")
    return (sizes[0], sizes[1], sizes[2]), sizes[3]


def _geometry(header: Any, axes: int) -> tuple[np.ndarray, tuple[float, float, float]]:
    """nibabel's orientation array of the stored axes, and mm per voxel in stored order."""
    from nibabel.affines import voxel_sizes
    from nibabel.orientations import io_orientation

    zooms = [float(z) for z in header["pixdim"][1 : axes + 1]]
    if any(not math.isfinite(z) or z <= 0 for z in zooms):
        raise ReadError("bad_geometry", "the NIfTI spacing is zero, negative or not finite")
    try:
        affine = header.get_best_affine()
        orientation = io_orientation(affine)
        sizes = [float(s) for s in voxel_sizes(affine)]
        unit = _MM[header.get_xyzt_units()[0]]
    except Exception as error:
        raise ReadError("bad_geometry", f"the NIfTI orientation is impossible ({type(error).__name__})") from error
    if int(header["sform_code"]) <= 0 and int(header["qform_code"]) <= 0:
        sizes[:axes] = zooms
    if bool(np.isnan(orientation).any()) or any(not math.isfinite(s) or s <= 0 for s in sizes[:axes]):
        raise ReadError("bad_geometry", "the NIfTI orientation is singular")
    return orientation, (sizes[0] * unit, sizes[1] * unit, sizes[2] * unit)


def _spatial(nifti: _Nifti) -> tuple[int, int, int]:
    """Size as shown: ``(D, H, W)``."""
    shown = [0, 0, 0]
    for axis, n in enumerate(nifti.shape):
        shown[2 - int(nifti.orientation[axis, 0])] = n
    return shown[0], shown[1], shown[2]


def _read(stream: BufferedIOBase, at: int, size: int) -> bytes:
    try:
        stream.seek(at)
        data = stream.read(size)
    except EOFError as error:
        raise ReadError("truncated", "the gzip file is cut off") from error
    except (zlib.error, gzip.BadGzipFile) as error:
        raise ReadError("unreadable", "the gzip file is damaged") from error
    if len(data) < size:
        raise ReadError("truncated", "the file ends before its voxels do")
    return data


def _volume(nifti: _Nifti, time: int) -> Image:
    from nibabel.orientations import apply_orientation

    data = _read(nifti.stream, nifti.offset + time * nifti.volume_bytes, nifti.volume_bytes)
    stored = np.frombuffer(data, nifti.dtype).reshape(nifti.shape, order="F")
    channels = [stored[name] for name in "RGB"] if nifti.dtype.names else [stored]
    shown = [apply_orientation(_scaled(c, nifti), nifti.orientation)[::-1, ::-1].transpose(2, 1, 0) for c in channels]
    pixels = np.ascontiguousarray(np.stack(shown))
    bits = 8 if nifti.dtype.names else 8 * nifti.dtype.itemsize
    spacing = [0.0, 0.0, 0.0]
    for axis, size in enumerate(nifti.spacing):
        spacing[2 - int(nifti.orientation[axis, 0])] = size
    return Image(pixels, "", Frame.whole(pixels.shape[1:]), spacing=tuple(spacing), bits=bits, file_format="nifti")


def _scaled(stored: np.ndarray, nifti: _Nifti) -> np.ndarray:
    """Numbers after ``scl_slope`` and ``scl_inter``; untouched when those change nothing."""
    native = stored.astype(stored.dtype.newbyteorder("="))
    if nifti.dtype.names or (nifti.slope == 1.0 and nifti.inter == 0.0):
        return native
    return (native * nifti.slope + nifti.inter).astype(np.float32)
