"""What the files of a set have in common whatever they show: size, format, compression; from headers, nothing is decoded."""

import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float64

from offmap.benchmark.image_set import Item
from offmap.read.parts import quiet

NUMBERS: Mapping[str, str] = MappingProxyType(
    {
        "width": "columns of pixels",
        "height": "rows of pixels",
        "depth": "slices or frames of the file",
        "aspect": "width / height",
        "bits": "bits per sample",
        "channels": "samples per pixel",
        "bytes": "size of the file",
        "bytes_per_pixel": "size of the file by its pixels, slices counted",
        "jpeg_quality": "of libjpeg, 1 to 100, as the luminance table looks",
        "jpeg_subsampling": "luminance samples per chrominance sample: 1, 2 or 4",
    }
)
"""Numbers that are known of a file; NaN where the format has none."""

TEXTS = ("format", "coding")
"""Words that are known of a file: its format, and the DICOM transfer syntax or the compression of a TIFF."""

_LUMINANCE = (
    "16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62 "
    "18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"
)
"""ITU-T T.81, table K.1."""


@dataclass(frozen=True, slots=True, eq=False)
class FileStatistics:
    """One row an item.

    Args:
        name: of the set.
        items: names of the items.
        values: columns as ``NUMBERS``, NaN where unknown.
        texts: columns as ``TEXTS``, empty where unknown.
        groups: equal for items that stay in one fold (those of one patient).
    """

    name: str
    items: tuple[str, ...]
    values: Float64[np.ndarray, "n d"]
    texts: Mapping[str, tuple[str, ...]]
    groups: tuple[str, ...]

    def column(self, name: str) -> Float64[np.ndarray, " n"]:
        """One column of ``NUMBERS``."""
        found: np.ndarray = self.values[:, list(NUMBERS).index(name)]
        return found


def file_statistics(items: Sequence[Item], name: str = "") -> FileStatistics:
    """Statistics of the files of a set; a file that cannot be read has none but its size.

    Args:
        items: as ``Suite.items`` gives them.
        name: of the set, for sentences.
    """
    rows = [_statistics(item) for item in items]
    values = np.array([[float(row.get(key, math.nan)) for key in NUMBERS] for row in rows], dtype=np.float64)
    return FileStatistics(
        name=name,
        items=tuple(item.name for item in items),
        values=values.reshape(len(rows), len(NUMBERS)),
        texts={key: tuple(str(row.get(key, "")) for row in rows) for key in TEXTS},
        groups=tuple(item.patient or f"{item.source.path}\0{item.source.key}{item.part}" for item in items),
    )


def _statistics(item: Item) -> dict[str, Any]:
    path = item.source.members[0] if item.source.members else item.source.path
    if item.source.key:
        return dict(_array(path, item.source.key))
    try:
        size = sum(p.stat().st_size for p in item.source.members or (path,))
        with path.open("rb") as file:
            head = file.read(400)
        found = _header(path, head)
    except OSError:
        return {}
    if item.source.members:
        found["depth"] = len(item.source.members)
    found["bytes"] = size
    if found.get("width") and found.get("height"):
        found["aspect"] = found["width"] / found["height"]
        found["bytes_per_pixel"] = size / (found["width"] * found["height"] * found.get("depth", 1))
    return found


def _header(path: Path, head: bytes) -> dict[str, Any]:
    """By the first bytes, as reading does; nothing where the header is broken or of a foreign format."""
    reader: Callable[[Path], dict[str, Any]] | None = None
    if head[128:132] == b"DICM":
        reader = _dicom
    elif head.startswith((b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*")):
        reader = _picture
    elif head.startswith(b"\x1f\x8b") or head[344:348] == b"n+1\0":
        reader = _nifti
    if reader is None:
        return {}
    try:
        with quiet():
            return reader(path)
    except Exception:
        return {}


def _picture(path: Path) -> dict[str, Any]:
    from PIL import Image as Pillow

    with Pillow.open(path) as image:
        found: dict[str, Any] = {"format": str(image.format).lower(), "width": image.width, "height": image.height, "depth": 1}
        found["channels"] = len(image.getbands())
        found["bits"] = 16 if ";16" in image.mode else 32 if image.mode in ("I", "F") else 1 if image.mode == "1" else 8
        if image.format == "JPEG":
            found |= _jpeg(image)
        elif image.format == "TIFF":
            found["coding"] = str(image.info.get("compression", ""))
            found["depth"] = getattr(image, "n_frames", 1)
        return found


def _jpeg(image: Any) -> dict[str, Any]:
    tables: Mapping[int, Sequence[int]] = image.quantization
    found: dict[str, Any] = {"jpeg_quality": _quality(tuple(tables[min(tables)]))} if tables else {}
    layers = getattr(image, "layer", [])
    if len(layers) == 3:
        found["jpeg_subsampling"] = layers[0][1] * layers[0][2] / (layers[1][1] * layers[1][2])
    return found


@lru_cache(maxsize=256)
def _quality(table: tuple[int, ...]) -> int:
    """The quality of libjpeg whose luminance table is nearest; other programs have tables of their own, and get the nearest too."""
    known = np.array(_LUMINANCE.split(), dtype=np.int64)
    quality = np.arange(1, 101)
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    made = np.clip((known[None] * scale[:, None] + 50) // 100, 1, 255)
    return int(quality[np.abs(made - np.array(table)[None]).sum(axis=1).argmin()])


def _dicom(path: Path) -> dict[str, Any]:
    import pydicom

    tags = ["Rows", "Columns", "NumberOfFrames", "BitsStored", "SamplesPerPixel"]
    data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
    found: dict[str, Any] = {"format": "dicom", "coding": str(data.file_meta.get("TransferSyntaxUID", ""))}
    names = {"Rows": "height", "Columns": "width", "BitsStored": "bits", "SamplesPerPixel": "channels"}
    found |= {key: int(data[tag].value) for tag, key in names.items() if tag in data}
    return found | {"depth": int(data.get("NumberOfFrames", 1) or 1)}


def _nifti(path: Path) -> dict[str, Any]:
    import nibabel

    header: Any = nibabel.load(path).header
    shape = header.get_data_shape()
    sizes = {"width": int(shape[0]), "height": int(shape[1]), "depth": int(np.prod(shape[2:], dtype=np.int64)), "channels": 1}
    return {"format": "nifti", "bits": 8 * header.get_data_dtype().itemsize} | sizes


@lru_cache(maxsize=64)
def _array(path: Path, key: str) -> Mapping[str, Any]:
    """Of an array in an ``.npz``: its images have no files of their own, so no bytes."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}
    channels = shape[-1] if len(shape) == 4 and shape[-1] in (1, 3, 4) else 1
    spatial = shape[1:-1] if len(shape) == 4 and shape[-1] in (1, 3, 4) else shape[1:] if len(shape) > 2 else shape
    if len(spatial) < 2:
        return {}
    sizes = {"height": spatial[-2], "width": spatial[-1], "aspect": spatial[-1] / max(1, spatial[-2]), "channels": channels}
    return {"format": "npz", "bits": 8 * dtype.itemsize, "depth": spatial[0] if len(spatial) > 2 else 1} | sizes
