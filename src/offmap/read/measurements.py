"""Arrays of measurements, ``.npy`` and ``.npz``: raw data of a scanner, not images."""

import math
import stat
import zipfile
import zlib

import numpy as np

from offmap.core.errors import ReadError
from offmap.core.types import Source
from offmap.read.limits import DEFAULT, Limits
from offmap.read.load import refusal

NPY, ZIP = b"\x93NUMPY", b"PK\x03\x04"


def open_array(source: Source, *, limits: Limits = DEFAULT) -> np.ndarray:
    """The array of a source; an ``.npy`` file is mapped, not read. Nothing is unpickled.

    Args:
        source: from ``sources.find``; of an ``.npz`` with the name of the array where there are several.

    Raises:
        ReadError: with the reason code of the score table.
    """
    try:
        head = _head(source, limits)
        if head.startswith(NPY):
            array: np.ndarray = np.load(source.path, mmap_mode="r", allow_pickle=False)
        elif head.startswith(ZIP):
            array = _member(source, limits)
        else:
            raise ReadError("unreadable", "the file is neither .npy nor .npz, in which measurements are read")
    except (ValueError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise ReadError(*_why(error)) from error
    except OSError as error:
        refused = refusal(source.item, error)
        raise ReadError(refused.reason, refused.detail) from error
    if array.dtype.kind not in "buifc":
        raise ReadError("unsupported", f"the array holds {array.dtype}, no numbers")
    return array


def _head(source: Source, limits: Limits) -> bytes:
    info = source.path.stat()
    if not stat.S_ISREG(info.st_mode):
        raise ReadError("unreadable", "not a regular file")
    if not info.st_size:
        raise ReadError("empty", "the file holds no bytes")
    if info.st_size > limits.max_file_bytes:
        raise ReadError("bomb", f"the file has {info.st_size:,} bytes, the limit is {limits.max_file_bytes:,}")
    with source.path.open("rb") as file:
        return file.read(8)


def _member(source: Source, limits: Limits) -> np.ndarray:
    with zipfile.ZipFile(source.path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        name = f"{source.key}.npy" if source.key else names[0] if len(names) == 1 else ""
        if name not in names:
            raise ReadError("unsupported", f"name one array of the .npz as FILE.npz::KEY; it has: {', '.join(names[:20]) or 'none'}")
        info = archive.getinfo(name)
        limits.check(0, expanded=info.file_size, stored=info.compress_size)
        with archive.open(info) as file:
            array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    limits.check(math.prod(array.shape[1:]))
    return array


def _why(error: Exception) -> tuple[str, str]:
    if "allow_pickle" in str(error) or "Python objects" in str(error):
        return "unsupported", "the array holds Python objects, which are never read"
    if isinstance(error, EOFError) or "mmap length" in str(error) or "reshape" in str(error) or "EOF" in str(error):
        return "truncated", "the file ends before its numbers do"
    return "unreadable", "the file is damaged"
