"""NIfTI against nibabel, and the order in which slices are shown."""

import gzip
import itertools
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from offmap.read.limits import Limits

AFFINE = np.diag([2.0, 3.0, 4.0, 1.0])


def _save(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE, **fields: object) -> Path:
    image = nib.Nifti1Image(data, affine)
    for name, value in fields.items():
        image.header[name] = value
    nib.save(image, path)
    return path


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_volume_is_shown_as_dicom_shows_it(tmp_path: Path, rng, one, suffix: str, dtype: str) -> None:
    data = rng.integers(0, 200, (10, 12, 9)).astype(dtype)
    image = one(_save(tmp_path / f"a.{suffix}", data), volume=True)
    assert image.spacing == (4.0, 3.0, 2.0)
    assert image.file_format == "nifti"
    np.testing.assert_array_equal(image.pixels[0], data[::-1, ::-1].transpose(2, 1, 0))


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1)])
def test_stored_orientation_does_not_change_what_is_shown(tmp_path: Path, rng, one, axes: tuple[int, ...], signs: tuple[int, ...]) -> None:
    canonical = rng.integers(0, 200, (10, 12, 9)).astype(np.int16)
    ornt = np.array([[a, s] for a, s in zip(axes, signs, strict=True)])
    stored = nib.Nifti1Image(canonical, AFFINE).as_reoriented(ornt)
    nib.save(stored, tmp_path / "a.nii")
    image = one(tmp_path / "a.nii", volume=True)
    np.testing.assert_array_equal(image.pixels[0], canonical[::-1, ::-1].transpose(2, 1, 0))
    np.testing.assert_allclose(image.spacing, (4.0, 3.0, 2.0), rtol=1e-5)


def test_slope_and_intercept(tmp_path: Path, rng, one) -> None:
    data = rng.integers(0, 200, (10, 12, 9)).astype(np.int16)
    image = nib.Nifti1Image(data, AFFINE)
    image.header.set_slope_inter(2.5, -1000)
    nib.save(image, tmp_path / "a.nii")
    expected = nib.load(tmp_path / "a.nii").get_fdata()[::-1, ::-1].transpose(2, 1, 0)
    np.testing.assert_allclose(one(tmp_path / "a.nii", volume=True).pixels[0], expected, rtol=1e-6)


def test_slices_are_those_of_the_volume(tmp_path: Path, rng, one, read) -> None:
    path = _save(tmp_path / "a.nii.gz", rng.integers(0, 200, (10, 12, 9)).astype(np.int16))
    volume, slices = one(path, volume=True), read(path)
    assert [image.item for image in slices] == [f"x#{z}" for z in range(9)]
    assert {image.spacing for image in slices} == {(3.0, 2.0)}
    np.testing.assert_array_equal(np.stack([image.pixels for image in slices], 1), volume.pixels)


def test_four_axes(tmp_path: Path, rng, read) -> None:
    data = rng.integers(0, 200, (10, 12, 9, 3)).astype(np.int16)
    path = _save(tmp_path / "a.nii.gz", data)
    volumes, slices = read(path, volume=True), read(path)
    assert [image.item for image in volumes] == ["x#0", "x#1", "x#2"]
    assert len(slices) == 27
    np.testing.assert_array_equal(volumes[2].pixels[0], data[::-1, ::-1, :, 2].transpose(2, 1, 0))
    np.testing.assert_array_equal(slices[20].pixels[0], volumes[2].pixels[0, 2])
    assert slices[20].item == "x#20"


def test_two_axes_and_colour(tmp_path: Path, rng, one) -> None:
    flat = _save(tmp_path / "a.nii", rng.integers(0, 200, (10, 12)).astype(np.int16))
    assert one(flat).pixels.shape == (1, 12, 10)
    colour = np.zeros((10, 12, 1), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    for name in "RGB":
        colour[name] = rng.integers(0, 255, (10, 12, 1))
    image = one(_save(tmp_path / "b.nii", colour))
    np.testing.assert_array_equal(image.pixels[1], colour["G"][::-1, ::-1, 0].T)


def test_nifti_2_and_big_endian(tmp_path: Path, rng, one) -> None:
    data = rng.integers(0, 200, (10, 12, 9)).astype(np.int16)
    nib.save(nib.Nifti2Image(data, AFFINE), tmp_path / "a.nii.gz")
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    nib.save(nib.Nifti1Image(data, AFFINE, header), tmp_path / "b.nii")
    for name in ("a.nii.gz", "b.nii"):
        np.testing.assert_array_equal(one(tmp_path / name, volume=True).pixels[0], data[::-1, ::-1].transpose(2, 1, 0))


def _patched(path: Path, at: int, raw: bytes) -> Path:
    data = bytearray(path.read_bytes())
    data[at : at + len(raw)] = raw
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("value", [0.0, -1.5, float("nan"), float("inf")])
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_impossible_spacing(tmp_path: Path, rng, reason, value: float, axis: int) -> None:
    path = _save(tmp_path / "a.nii", rng.integers(0, 200, (10, 12, 9)).astype(np.int16))
    assert reason(_patched(path, 76 + 4 * axis, np.float32(value).tobytes())) == "bad_geometry"


@pytest.mark.parametrize("dims", [(3, 0, 12, 9), (3, -4, 12, 9), (0, 1, 1, 1), (9, 1, 1, 1)])
def test_impossible_axes(tmp_path: Path, rng, reason, dims: tuple[int, ...]) -> None:
    path = _save(tmp_path / "a.nii", rng.integers(0, 200, (10, 12, 9)).astype(np.int16))
    assert reason(_patched(path, 40, np.array(dims, "<i2").tobytes())) == "bad_geometry"


def test_header_that_asks_for_18_gigabytes(tmp_path: Path, rng, reason) -> None:
    path = _save(tmp_path / "a.nii", rng.integers(0, 200, (10, 12, 9)).astype(np.int16))
    assert reason(_patched(path, 40, np.array((3, 3000, 3000, 1000), "<i2").tobytes())) == "bomb"


@pytest.mark.parametrize("offset", [-5.0, float("nan"), 1e12])
def test_impossible_place_of_voxels(tmp_path: Path, rng, reason, offset: float) -> None:
    path = _save(tmp_path / "a.nii", rng.integers(0, 200, (10, 12, 9)).astype(np.int16))
    assert reason(_patched(path, 108, np.float32(offset).tobytes())) == "unreadable"


def test_gzip_bomb(tmp_path: Path, reason) -> None:
    head = bytearray(_save(tmp_path / "a.nii", np.zeros((10, 12, 9), np.int16)).read_bytes()[:352])
    head[40:48] = np.array((3, 1000, 1000, 100), "<i2").tobytes()
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = packer.compress(bytes(head)) + packer.compress(bytes(20_000_000)) + packer.flush()
    (tmp_path / "b.nii.gz").write_bytes(packed)
    assert reason(tmp_path / "b.nii.gz", volume=True) == "bomb"


def test_bytes_behind_the_voxels_are_not_expanded(tmp_path: Path, rng, one) -> None:
    data = rng.integers(0, 200, (10, 12, 9)).astype(np.int16)
    plain = _save(tmp_path / "a.nii", data).read_bytes()
    packed = gzip.compress(plain) + b"\x1f\x8bgarbage that follows"
    (tmp_path / "b.nii.gz").write_bytes(packed)
    assert one(tmp_path / "b.nii.gz", volume=True, limits=Limits()).pixels.shape == (1, 9, 12, 10)


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.98])
def test_truncated(tmp_path: Path, rng, read, suffix: str, share: float) -> None:
    path = _save(tmp_path / f"a.{suffix}", rng.integers(0, 20000, (20, 22, 19)).astype(np.int16))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    found = read(path, volume=True)
    assert [row.reason for row in found] == ["truncated"]


def test_not_finite(tmp_path: Path, rng, reason) -> None:
    data = rng.random((10, 12, 9)).astype(np.float32)
    data[3, 3, 3] = np.inf
    assert reason(_save(tmp_path / "a.nii", data), volume=True) == "non_finite"


def test_unsupported_voxels(tmp_path: Path, reason) -> None:
    assert reason(_save(tmp_path / "a.nii", np.zeros((10, 12, 9), np.complex64))) == "unsupported"
    assert reason(_save(tmp_path / "b.nii", np.zeros((10, 12, 9, 1, 3), np.float32))) == "unsupported"
