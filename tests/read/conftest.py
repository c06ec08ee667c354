"""Files made by code: a DICOM image with any attribute changed, and short ways to read them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from offmap.core.types import Image, NotAssessed, Source
from offmap.read.load import load

Read = Callable[..., list[Any]]
Make = Callable[..., Path]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240607)


@pytest.fixture
def read() -> Read:
    """All outcomes of one file; each item is named ``x``."""

    def go(path: Path, *, key: str = "", volume: bool = False, **options: Any) -> list[Any]:
        return list(load(Source(path, "x", key=key, volume=volume), **options))

    return go


@pytest.fixture
def one(read: Read) -> Callable[..., Image]:
    """The only image of a file."""

    def go(path: Path, **options: Any) -> Image:
        (image,) = read(path, **options)
        assert isinstance(image, Image), image
        return image

    return go


@pytest.fixture
def reason(read: Read) -> Callable[..., str]:
    """Why the file's only row is not assessed."""

    def go(path: Path, **options: Any) -> str:
        (row,) = read(path, **options)
        assert isinstance(row, NotAssessed), row
        return row.reason

    return go


def dataset(pixels: np.ndarray, **attributes: Any) -> FileDataset:
    """A CT slice, RGB image or multi-frame file; ``frames=True`` says that the first axis is frames."""
    frames = attributes.pop("frames", False)
    syntax = attributes.pop("syntax", ExplicitVRLittleEndian)
    data = attributes.pop("data", None)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = CTImageStorage, "1.2.3.4", "CT"
    shape = pixels.shape[1:] if frames else pixels.shape
    ds.Rows, ds.Columns = shape[:2]
    ds.SamplesPerPixel = 3 if len(shape) == 3 else 1
    ds.PhotometricInterpretation = "RGB" if len(shape) == 3 else "MONOCHROME2"
    if len(shape) == 3:
        ds.PlanarConfiguration = 0
    if frames:
        ds.NumberOfFrames = pixels.shape[0]
    ds.BitsAllocated = ds.BitsStored = 8 * pixels.dtype.itemsize
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    raw = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes() if data is None else data
    ds.add_new(0x7FE00010, "OW" if pixels.dtype.itemsize > 1 else "OB", raw + b"\0" * (len(raw) % 2))
    if data is not None:
        ds["PixelData"].is_undefined_length = True
    for name, value in attributes.items():
        setattr(ds, name, value)
    return ds


def write(ds: FileDataset, path: Path) -> Path:
    syntax = ds.file_meta.TransferSyntaxUID
    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    pydicom.dcmwrite(path, ds, implicit_vr=implicit, little_endian=little, enforce_file_format=False)
    return path


@pytest.fixture
def dicom(tmp_path: Path) -> Make:
    """Write a DICOM file: ``dicom(pixels, name="a.dcm", Rows=..., frames=True, syntax=..., data=encapsulated bytes)``."""

    def go(pixels: np.ndarray, *, name: str = "a.dcm", **attributes: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return write(dataset(pixels, **attributes), path)

    return go


@pytest.fixture
def encapsulated() -> Callable[..., bytes]:
    """Compressed frames as the value of a pixel element."""
    return lambda *frames: encapsulate(list(frames), has_bot=True)
