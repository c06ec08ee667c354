"""Folders of slices as volumes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offmap.core.types import Image, NotAssessed
from offmap.read.load import load
from offmap.read.sources import find

AXIAL = [1, 0, 0, 0, 1, 0]


@pytest.fixture
def series(dicom, rng):
    """Write slices at the given positions (mm along z) in shuffled file order; gives the stack in order of position."""

    def go(folder: str, positions: list[float], **attributes: Any) -> np.ndarray:
        pixels = rng.integers(0, 4096, (len(positions), 20, 31)).astype(np.uint16)
        for index, z in enumerate(positions):
            options = {"ImagePositionPatient": [0, 0, z], "ImageOrientationPatient": AXIAL, "PixelSpacing": [0.5, 0.7]}
            options |= {"SeriesInstanceUID": "1.2.3", "InstanceNumber": index} | attributes
            dicom(pixels[index], name=f"{folder}/{index:03}.dcm", **options)
        return pixels[np.argsort(positions)]

    return go


def _only(folder: Path) -> Any:
    (source,) = find([folder], volumes=True).sources
    (outcome,) = load(source)
    return outcome


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"])
def test_slices_are_sorted_by_position(tmp_path: Path, series, syntax: str) -> None:
    from pydicom.uid import UID

    expected = series("s", [10, -5, 0, 5, 15], syntax=UID(syntax), RescaleSlope="2", RescaleIntercept="-1000")
    image = _only(tmp_path / "s")
    assert isinstance(image, Image)
    assert image.item == str(tmp_path / "s")
    assert image.spacing == (5.0, 0.5, 0.7)
    assert image.frame.shape == (5, 20, 31)
    np.testing.assert_allclose(image.pixels[0], expected * 2.0 - 1000)


def test_gap_is_measured_along_the_normal(tmp_path: Path, dicom, rng) -> None:
    tilt = np.deg2rad(30)
    row, column = np.array([1, 0, 0]), np.array([0, np.cos(tilt), np.sin(tilt)])
    normal = np.cross(row, column)
    for index in range(4):
        position = [float(f"{v:.6f}") for v in 3.0 * index * normal + [7, 8, 9]]
        orientation = [float(f"{v:.6f}") for v in (*row, *column)]
        pixels = rng.integers(0, 4096, (20, 31)).astype(np.uint16)
        options = {"ImagePositionPatient": position, "ImageOrientationPatient": orientation, "PixelSpacing": [1, 1]}
        dicom(pixels, name=f"s/{index}.dcm", SeriesInstanceUID="1.2", **options)
    np.testing.assert_allclose(_only(tmp_path / "s").spacing, (3.0, 1.0, 1.0), rtol=1e-4)


@pytest.mark.parametrize("positions", [[0, 5, 10, 30], [0, 5, 5, 10], [0, 0, 0]])
def test_uneven_gaps_and_doubled_slices(tmp_path: Path, series, positions: list[float]) -> None:
    series("s", positions)
    outcome = _only(tmp_path / "s")
    assert isinstance(outcome, NotAssessed)
    assert outcome.reason == "mixed_series"


@pytest.mark.parametrize(
    "change",
    [
        {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]},
        {"PixelSpacing": [1, 1]},
        {"Modality": "MR"},
        {"size": (24, 31)},
        {"ImagePositionPatient": None},
    ],
)
def test_slices_that_do_not_belong_together(tmp_path: Path, series, dicom, rng, change: dict[str, Any]) -> None:
    series("s", [0, 5, 10])
    options = {
        "ImagePositionPatient": [0, 0, 15],
        "ImageOrientationPatient": AXIAL,
        "PixelSpacing": [0.5, 0.7],
        "SeriesInstanceUID": "1.2.3",
    }
    options |= change
    size = options.pop("size", (20, 31))
    dicom(rng.integers(0, 4096, size).astype(np.uint16), name="s/x.dcm", **options)
    assert _only(tmp_path / "s").reason == "mixed_series"


def test_without_positions_by_instance_number(tmp_path: Path, dicom, rng) -> None:
    pixels = rng.integers(0, 4096, (4, 20, 31)).astype(np.uint16)
    for index, number in enumerate((3, 1, 4, 2)):
        dicom(pixels[index], name=f"s/{index}.dcm", SeriesInstanceUID="1.2", InstanceNumber=number)
    image = _only(tmp_path / "s")
    assert image.spacing is None
    np.testing.assert_array_equal(image.pixels[0], pixels[[1, 3, 0, 2]])


def test_signed_and_unsigned_slices_in_one_series(tmp_path: Path, dicom, rng) -> None:
    low = rng.integers(-2000, 2000, (20, 31)).astype(np.int16)
    high = rng.integers(0, 60000, (20, 31)).astype(np.uint16)
    for z, pixels in enumerate((low, high)):
        options = {"ImagePositionPatient": [0, 0, z], "ImageOrientationPatient": AXIAL, "PixelSpacing": [1, 1]}
        dicom(pixels, name=f"s/{z}.dcm", SeriesInstanceUID="1.2", **options)
    found = _only(tmp_path / "s").pixels[0]
    np.testing.assert_array_equal(found, np.stack([low.astype(np.float32), high.astype(np.float32)]))


def test_one_broken_slice_names_its_reason(tmp_path: Path, series) -> None:
    series("s", [0, 5, 10])
    path = tmp_path / "s" / "001.dcm"
    path.write_bytes(path.read_bytes()[:-100])
    assert _only(tmp_path / "s").reason == "truncated"


def test_two_series_and_other_files_in_one_folder(tmp_path: Path, series, dicom, rng) -> None:
    series("s", [0, 5, 10])
    for z in range(2):
        options = {"ImagePositionPatient": [0, 0, z], "ImageOrientationPatient": AXIAL, "PixelSpacing": [1, 1]}
        dicom(rng.integers(0, 99, (20, 31)).astype(np.uint16), name=f"s/z{z}.dcm", SeriesInstanceUID="1.9", **options)
    dicom(rng.integers(0, 99, (20, 31)).astype(np.uint16), name="s/single.dcm", SeriesInstanceUID="1.8")
    (tmp_path / "s" / "zz.bin").write_bytes(b"no image")
    found = find([tmp_path / "s"], volumes=True).sources
    folder = str(tmp_path / "s")
    assert [s.item for s in found] == [f"{folder}#0", f"{folder}/single.dcm", f"{folder}#1", f"{folder}/zz.bin"]
    assert [len(s.members) for s in found] == [3, 0, 2, 0]
    assert [len(list(load(s))) for s in found] == [1, 1, 1, 1]


def test_without_volumes_a_series_is_its_slices(tmp_path: Path, series) -> None:
    series("s", [0, 5, 10])
    found = [outcome for source in find([tmp_path / "s"]).sources for outcome in load(source)]
    assert [image.spatial for image in found] == [(20, 31)] * 3


def test_a_glob_of_slices_is_a_series(tmp_path: Path, series) -> None:
    series("s", [0, 5, 10])
    (source,) = find([str(tmp_path / "s" / "*.dcm")], volumes=True).sources
    assert len(source.members) == 3


def test_digest_changes_with_any_member(tmp_path: Path, series, dicom, rng) -> None:
    series("s", [0, 5, 10])
    first = _only(tmp_path / "s").digest
    assert _only(tmp_path / "s").digest == first
    series("s", [0, 5, 10])
    assert _only(tmp_path / "s").digest != first
