"""Hostile and broken files: a reason code for each, nothing raised, nothing lost."""

import gzip
import hashlib
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from offmap.core.types import REASONS, Image, NotAssessed, Source
from offmap.read.limits import Limits
from offmap.read.load import load
from offmap.read.parts import Known, part_digest


@pytest.fixture
def png(tmp_path: Path, rng) -> Path:
    path = tmp_path / "a.png"
    PIL.Image.fromarray(rng.integers(0, 256, (20, 30), dtype=np.uint8)).save(path)
    return path


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "empty"),
        (b"garbage" * 100, "unreadable"),
        (b"\0" * 1000, "unreadable"),
        (b"\0" * 128 + b"DICM", "no_pixels"),
        (b"\0" * 128 + b"DICM" + b"garbage" * 100, "truncated"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (b"\x89PNG\r\n\x1a\n" + b"garbage" * 100, "unreadable"),
        (b"\xff\xd8\xff", "truncated"),
        (b"II*\0", "truncated"),
        (b"II*\0" + b"\xff" * 100, "no_pixels"),
        (b"PK\x03\x04", "truncated"),
        (b"\x1f\x8b", "truncated"),
        (gzip.compress(b"hello" * 1000, mtime=0), "unsupported"),
        (b"GIF89a" + b"\0" * 100, "unsupported"),
        (b"RIFF\0\0\0\0WEBP", "unsupported"),
        (b"\x93NUMPY\x01\x00", "unsupported"),
    ],
)
def test_what_is_no_image(tmp_path: Path, reason, raw: bytes, code: str) -> None:
    (tmp_path / "a").write_bytes(raw)
    assert reason(tmp_path / "a") == code


def test_constant_and_small(tmp_path: Path, reason) -> None:
    PIL.Image.new("L", (20, 30), 7).save(tmp_path / "a.png")
    assert reason(tmp_path / "a.png") == "constant"
    PIL.Image.fromarray(np.arange(49, dtype=np.uint8).reshape(7, 7)).save(tmp_path / "b.png")
    assert reason(tmp_path / "b.png") == "small"


def test_missing_file_and_folder(tmp_path: Path, reason) -> None:
    assert reason(tmp_path / "gone.png") == "unreadable"


def test_file_over_the_limit_is_not_opened(png: Path, reason) -> None:
    assert reason(png, limits=Limits(max_file_bytes=10)) == "bomb"
    assert reason(png, limits=Limits(max_pixels=599)) == "bomb"


def test_dicom_without_pixels(tmp_path: Path, reason) -> None:
    for name in ("reportsi.dcm", "rtplan.dcm", "test-SR.dcm", "waveform_ecg.dcm"):
        found = get_testdata_file(name, download=False)
        if found is None:
            pytest.skip(f"pydicom does not carry {name}")
        assert reason(Path(found)) == "no_pixels"


def test_truncated_dicom_header(dicom, reason, rng) -> None:
    path = dicom(rng.integers(0, 99, (20, 30)).astype(np.uint16), PatientName="x" * 60)
    whole = path.read_bytes()
    at = whole.index(struct.pack("<HH", 0x7FE0, 0x10))
    for cut in range(140, at + 12, 7):
        path.write_bytes(whole[:cut])
        assert reason(path) in ("truncated", "no_pixels", "unreadable")
    for cut in range(at - 30, at):
        path.write_bytes(whole[:cut])
        assert reason(path) == "truncated"


def _nested(depth: int, *, defined: bool) -> bytes:
    """A private sequence nested ``depth`` times, explicit VR little-endian, with defined or undefined lengths."""
    tag = struct.pack("<HH2sH", 0x0009, 0x1010, b"SQ", 0)
    item = struct.pack("<HH", 0xFFFE, 0xE000)
    inner = b""
    for _ in range(depth):
        if defined:
            inner = item + struct.pack("<I", len(inner)) + inner
            inner = tag + struct.pack("<I", len(inner)) + inner
        else:
            inner = item + b"\xff" * 4 + inner + struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
            inner = tag + b"\xff" * 4 + inner + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return inner


@pytest.mark.parametrize("depth", [10, 400, 1500])
@pytest.mark.parametrize("defined", [True, False])
def test_nested_sequences(dicom, read, rng, depth: int, defined: bool) -> None:
    pixels = rng.integers(0, 99, (20, 30)).astype(np.uint16)
    path = dicom(pixels)
    whole = path.read_bytes()
    at = whole.index(struct.pack("<HH2s", 0x0028, 0x0002, b"US"))
    path.write_bytes(whole[:at] + _nested(depth, defined=defined) + whole[at:])
    (row,) = read(path)
    if depth == 10:
        np.testing.assert_array_equal(row.pixels[0], pixels)
    else:
        assert row.reason == "unreadable"
        assert "nested deeper" in row.detail


def test_deflate_bomb(dicom, reason, rng) -> None:
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    path = dicom(rng.integers(0, 99, (20, 30)).astype(np.uint16), syntax=DeflatedExplicitVRLittleEndian)
    whole = path.read_bytes()
    start = whole.index(b"1.2.840.10008.1.2.1.99") + 22
    plain = struct.pack("<HH2sHI", 0x0009, 0x1010, b"OB", 0, 300_000_000)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(plain) + b"".join(packer.compress(bytes(10_000_000)) for _ in range(30)) + packer.flush()
    path.write_bytes(whole[:start] + packed)
    assert len(packed) < 400_000
    assert reason(path) == "bomb"
    path.write_bytes(whole[: start + 40])
    assert reason(path) == "truncated"


def test_palette_and_functional_groups_full_of_nonsense(dicom, read, rng) -> None:
    pixels = rng.integers(0, 99, (2, 20, 30)).astype(np.uint16)
    broken = Dataset()
    broken.PixelMeasuresSequence = []
    path = dicom(pixels, frames=True, PerFrameFunctionalGroupsSequence=[broken], SharedFunctionalGroupsSequence=[])
    assert all(isinstance(row, Image) for row in read(path))


def test_wrong_numbers_in_the_header_are_not_quoted(dicom, read, rng) -> None:
    path = dicom(rng.integers(0, 99, (20, 30)).astype(np.uint16), PatientName="CANARY^NAME")
    whole = path.read_bytes()
    rows = struct.pack("<HH2sHH", 0x0028, 0x0010, b"US", 2, 20)
    path.write_bytes(whole.replace(rows, struct.pack("<HH2sH2s", 0x0028, 0x0010, b"DS", 2, b"QX")))
    (row,) = read(path)
    assert row.reason == "unreadable"
    assert "QX" not in row.detail


def test_digest_is_that_of_the_bytes_and_the_part(png: Path, one) -> None:
    whole = hashlib.sha256(png.read_bytes()).hexdigest()
    assert one(png).digest == part_digest(whole) == hashlib.sha256(f"{whole}:".encode()).hexdigest()


def test_known_images_are_not_decoded(png: Path, one, read, monkeypatch: pytest.MonkeyPatch) -> None:
    known = one(png).digest
    monkeypatch.setattr(PIL.Image, "open", None)
    assert read(png, known={known}.__contains__) == [Known("x", known)]


@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "npz", "nii", "nii.gz", "dcm"])
def test_large_files_are_read_from_disk_with_the_same_result(
    tmp_path: Path, rng, read, dicom, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nibabel as nib

    import offmap.read.load

    pixels = rng.integers(0, 255, (20, 30), dtype=np.uint8)
    path = tmp_path / f"a.{kind}"
    if kind == "npz":
        np.savez(path, x=pixels[None])
    elif kind.startswith("nii"):
        nib.save(nib.Nifti1Image(pixels[..., None], np.eye(4)), path)
    elif kind == "dcm":
        dicom(pixels)
    else:
        PIL.Image.fromarray(pixels).save(path)
    (in_memory,) = read(path)
    monkeypatch.setattr(offmap.read.load, "_SMALL", 0)
    (from_disk,) = read(path)
    assert in_memory.digest == from_disk.digest
    np.testing.assert_array_equal(in_memory.pixels, from_disk.pixels)


def test_load_is_lazy(tmp_path: Path, rng) -> None:
    np.savez(tmp_path / "a.npz", x=rng.integers(0, 255, (1000, 20, 30), dtype=np.uint8))
    images = load(Source(tmp_path / "a.npz", "x"))
    assert next(images).item == "x[0]"
    images.close()


BASE = ["CT_small.dcm", "MR_small_RLE.dcm", "SC_rgb_jpeg_dcmtk.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_jp2klossless.dcm"]


@pytest.mark.parametrize("name", BASE)
def test_files_cut_at_every_place_never_raise(tmp_path: Path, name: str) -> None:
    found = get_testdata_file(name, download=False)
    if found is None:
        pytest.skip(f"pydicom does not carry {name}")
    whole = Path(found).read_bytes()
    (expected,) = load(Source(Path(found), "x"))
    pixels_at = whole.rindex(struct.pack("<HH", 0x7FE0, 0x10))
    path = tmp_path / "a.dcm"
    for cut in range(0, len(whole), max(1, len(whole) // 97)):
        path.write_bytes(whole[:cut])
        rows = list(load(Source(path, "x")))
        assert len(rows) == 1
        if isinstance(rows[0], Image):
            assert cut > pixels_at
            np.testing.assert_array_equal(rows[0].pixels, expected.pixels)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(name=st.sampled_from(BASE), edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=12))
def test_files_with_changed_bytes_never_raise(tmp_path: Path, name: str, edits: list[tuple[float, int]]) -> None:
    found = get_testdata_file(name, download=False)
    if found is None:
        pytest.skip(f"pydicom does not carry {name}")
    raw = bytearray(Path(found).read_bytes())
    for share, value in edits:
        raw[int(share * (len(raw) - 1))] = value
    (tmp_path / "a.dcm").write_bytes(raw)
    rows = list(load(Source(tmp_path / "a.dcm", "x"), limits=Limits(max_pixels=1_000_000)))
    assert rows
    assert all(
        isinstance(row, Image) or (isinstance(row, NotAssessed) and row.reason in REASONS and row.reason != "failed") for row in rows
    )


def test_pydicom_data_sets_are_never_turned_into_text(dicom, one, rng, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> str:
        raise AssertionError("a data set was turned into text")

    path = dicom(rng.integers(0, 99, (20, 30)).astype(np.uint16))
    for name in ("__str__", "__repr__", "to_json"):
        monkeypatch.setattr(pydicom.Dataset, name, refuse)
    assert one(path).pixels.shape == (1, 20, 30)
