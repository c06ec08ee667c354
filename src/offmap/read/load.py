"""One source in, its images out: never raises for a bad file, decodes one image at a time."""

import errno
import hashlib
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from io import BufferedIOBase, BytesIO
from pathlib import Path

import numpy as np

from offmap.core.errors import ReadError
from offmap.core.types import Image, NotAssessed, Outcome, Source
from offmap.read.dicom_header import group_key
from offmap.read.limits import DEFAULT, Limits, check_size
from offmap.read.parts import Known, Part, part_digest, quiet

PATIENT_COLUMNS = ("patient_id", "patient")
"""Columns of a manifest that say which patient an image is of; turned into ``Image.group``, never kept as they are."""

_SMALL = 16 << 20
_HEAD = 1024
_FOREIGN = {
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"RIFF": "WebP",
    b"\x00\x00\x00\x0cjP": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\x93NUMPY": "a bare .npy",
    b"\x89HDF": "HDF5",
    b"NRRD": "NRRD",
    b"%PDF": "PDF",
}


def load(
    source: Source, *, limits: Limits = DEFAULT, identifiers: bool = False, known: Callable[[str], bool] | None = None
) -> Iterator[Outcome | Known]:
    """Read the images of one source, lazily.

    Args:
        source: file, series or array, from ``sources.find``.
        limits: what reading may cost (``seconds`` and ``memory_bytes`` hold in worker processes only).
        identifiers: whether ``Image.identifiers`` is filled.
        known: tells by digest whether the caller has the image's features already; if so, ``Known`` comes instead of
            pixels, and nothing is decoded.

    Yields:
        ``Image`` with ``(C, H, W)`` or ``(C, D, H, W)`` pixels, ``NotAssessed`` with a reason, or ``Known``; at least one.
    """
    with ExitStack() as stack:
        try:
            with quiet():
                file_digest, parts = _open(source, limits, identifiers, stack)
        except Exception as error:
            yield refusal(source.item, error)
            return
        found = 0
        while True:
            try:
                with quiet():
                    part = next(parts, None)
            except Exception as error:
                yield refusal(source.item, error)
                return
            if part is None:
                break
            found += 1
            yield _outcome(source, part, file_digest, known)
        if not found:
            yield NotAssessed(source.item, "no_pixels", "the file holds no image")


def refusal(item: str, error: Exception) -> NotAssessed:
    """What an exception means for the score table; its own text is kept only where offmap wrote it."""
    if isinstance(error, ReadError):
        return NotAssessed(item, error.reason, str(error))
    if isinstance(error, MemoryError):
        return NotAssessed(item, "bomb", "reading needs more memory than the limit")
    if isinstance(error, RecursionError):
        return NotAssessed(item, "unreadable", "the file is nested too deeply")
    if isinstance(error, PermissionError):
        return NotAssessed(item, "permission", "the file or folder may not be read")
    if isinstance(error, FileNotFoundError):
        return NotAssessed(item, "unreadable", "there is no such file")
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return NotAssessed(item, "link_loop", "a symbolic link leads to itself")
    if isinstance(error, (OSError, ValueError, EOFError, zlib.error)):
        return NotAssessed(item, "unreadable", f"the file cannot be read ({type(error).__name__})")
    return NotAssessed(item, "failed", f"an unexpected {type(error).__name__}")


def _outcome(source: Source, part: Part, file_digest: str, known: Callable[[str], bool] | None) -> Outcome | Known:
    item = source.item + part.suffix
    part_of = part.digest(file_digest)
    if known is not None and known(part_of):
        return Known(item, part_of)
    try:
        with quiet():
            image = part.read()
            check_pixels(image.pixels)
    except Exception as error:
        return refusal(item, error)
    return described(replace(image, item=item, digest=part_of), source)


def described(image: Image, source: Source) -> Image:
    """The image with what the manifest says of it: its columns in ``meta``, its patient in ``group``."""
    meta = {**image.meta, **{k: v for k, v in source.meta.items() if k not in PATIENT_COLUMNS}}
    group = next((group_key(source.meta[c]) for c in PATIENT_COLUMNS if source.meta.get(c)), image.group)
    return replace(image, meta=meta, group=group)


def check_pixels(pixels: np.ndarray) -> None:
    """Refuse pixels that cannot be scored; ``pixels`` is ``(C, H, W)`` or ``(C, D, H, W)``.

    Raises:
        ReadError: ``small``, ``non_finite`` or ``constant``.
    """
    check_size(pixels.shape[-2], pixels.shape[-1])
    low, high = pixels.min(), pixels.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ReadError("non_finite", "pixels are NaN or infinite")
    if low == high:
        raise ReadError("constant", "all pixels have one value")


def _open(source: Source, limits: Limits, identifiers: bool, stack: ExitStack) -> tuple[str, Iterator[Part]]:
    if source.members:
        from offmap.read import series

        read = partial(series.volume_of_series, source.members, limits, identifiers=identifiers)
        return _series_digest(source, limits), iter([Part("", read, name="volume")])
    file, size = _opened(source.path, limits, stack)
    file_digest, data = _hashed(file, size)
    if source.key:
        file_digest = part_digest(file_digest, source.key)
    return file_digest, _parts(source, data, size, limits, identifiers)


def _opened(path: Path, limits: Limits, stack: ExitStack) -> tuple[BufferedIOBase, int]:
    info = path.stat()
    if stat.S_ISDIR(info.st_mode):
        os.scandir(path).close()
        raise ReadError("link_loop", "a symbolic link leads back to a folder above it")
    if not stat.S_ISREG(info.st_mode):
        raise ReadError("unreadable", "not a regular file")
    if not info.st_size:
        raise ReadError("empty", "the file holds no bytes")
    if info.st_size > limits.max_file_bytes:
        raise ReadError("bomb", f"the file has {info.st_size:,} bytes, the limit is {limits.max_file_bytes:,}")
    return stack.enter_context(path.open("rb")), info.st_size


def _hashed(file: BufferedIOBase, size: int) -> tuple[str, BufferedIOBase]:
    """SHA-256 of the bytes, and the bytes to read on from (held in memory when few)."""
    if size <= _SMALL:
        data = file.read()
        return hashlib.sha256(data).hexdigest(), BytesIO(data)
    found = hashlib.sha256()
    while chunk := file.read(1 << 20):
        found.update(chunk)
    file.seek(0)
    return found.hexdigest(), file


def _series_digest(source: Source, limits: Limits) -> str:
    whole = hashlib.sha256()
    for member in source.members:
        with ExitStack() as stack:
            file, size = _opened(member, limits, stack)
            whole.update(_hashed(file, size)[0].encode())
    return whole.hexdigest()


def _parts(source: Source, file: BufferedIOBase, size: int, limits: Limits, identifiers: bool) -> Iterator[Part]:
    """The reader of the format that the first bytes show; the file's suffix is not looked at."""
    head = file.read(_HEAD)
    file.seek(0)
    if head[128:132] == b"DICM":
        from offmap.read import dicom

        return dicom.parts(file, stored=size, volume=source.volume, limits=limits, identifiers=identifiers)
    if head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
        from offmap.read import raster

        read = raster.png_parts if head[:1] == b"\x89" else raster.jpeg_parts
        return read(file, stored=size, limits=limits)
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        from offmap.read import tiff

        return tiff.parts(file, stored=size, limits=limits)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        from offmap.read import npz

        return npz.parts(file, key=source.key, volume=source.volume, limits=limits)
    return _nifti(source, file, head, size, limits)


def _nifti(source: Source, file: BufferedIOBase, head: bytes, size: int, limits: Limits) -> Iterator[Part]:
    from offmap.read import nifti

    packed = head[:2] == b"\x1f\x8b"
    if packed:
        head = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, nifti.HEAD)
    if nifti.matches(head):
        return nifti.parts(file, stored=size, volume=source.volume, limits=limits)
    if packed and len(head) < nifti.HEAD:
        raise ReadError("truncated", "the gzip file is cut off")
    if packed:
        raise ReadError("unsupported", "a gzip file that holds no NIfTI is not read; unpack it")
    if head[344:348] == b"ni1\0":
        raise ReadError("unsupported", "NIfTI in two files (.hdr and .img) is not read; join them into one .nii")
    foreign = next((name for magic, name in _FOREIGN.items() if head.startswith(magic)), "")
    if foreign:
        raise ReadError("unsupported", f"the file is {foreign}, which is not read; convert it to PNG, TIFF, DICOM or .npz")
    raise ReadError("unreadable", "the file is no image format that offmap reads")
