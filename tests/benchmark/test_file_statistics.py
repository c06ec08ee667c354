"""Headers of files that the test writes, against what they were written with."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from offmap.benchmark.file_statistics import NUMBERS, file_statistics
from offmap.benchmark.image_set import ImageSet, Item, find
from offmap.core.types import Source

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 255, (40, 30), dtype=np.uint8)
COLOUR = RNG.integers(0, 255, (40, 30, 3), dtype=np.uint8)


def of(path: Path, **more: Any) -> dict[str, Any]:
    """What is known of one file."""
    found = file_statistics([Item(Source(path, path.name, **more))])
    numbers = {name: float(found.column(name)[0]) for name in NUMBERS}
    return {k: v for k, v in numbers.items() if not np.isnan(v)} | {k: v[0] for k, v in found.texts.items() if v[0]}


@pytest.mark.parametrize("quality", [1, 5, 30, 49, 50, 75, 88, 95, 100])
def test_the_quality_of_a_jpeg_is_read_from_its_tables(tmp_path: Path, quality: int) -> None:
    Pillow.fromarray(COLOUR).save(tmp_path / "x.jpg", quality=quality)
    assert of(tmp_path / "x.jpg")["jpeg_quality"] == quality


@pytest.mark.parametrize(("subsampling", "samples"), [(0, 1), (1, 2), (2, 4)])
def test_the_subsampling_of_a_jpeg_is_read(tmp_path: Path, subsampling: int, samples: int) -> None:
    Pillow.fromarray(COLOUR).save(tmp_path / "x.jpg", subsampling=subsampling)
    assert of(tmp_path / "x.jpg")["jpeg_subsampling"] == samples


def test_a_grey_jpeg(tmp_path: Path) -> None:
    Pillow.fromarray(GREY).save(tmp_path / "x.bin", "JPEG", quality=70)
    size = (tmp_path / "x.bin").stat().st_size
    assert of(tmp_path / "x.bin") == {
        "width": 30,
        "height": 40,
        "depth": 1,
        "aspect": 0.75,
        "bits": 8,
        "channels": 1,
        "bytes": size,
        "bytes_per_pixel": size / 1200,
        "jpeg_quality": 70,
        "format": "jpeg",
    }


def test_png_and_tiff(tmp_path: Path) -> None:
    Pillow.fromarray(GREY.astype(np.uint16) * 200).save(tmp_path / "x.png")
    Pillow.fromarray(COLOUR).save(tmp_path / "y.tif", compression="tiff_lzw")
    png, tiff = of(tmp_path / "x.png"), of(tmp_path / "y.tif")
    assert (png["format"], png["bits"], png["channels"]) == ("png", 16, 1)
    assert (tiff["format"], tiff["bits"], tiff["channels"], tiff["coding"]) == ("tiff", 8, 3, "tiff_lzw")


def test_nifti(tmp_path: Path) -> None:
    import nibabel

    nibabel.save(nibabel.Nifti1Image(np.zeros((20, 24, 6), dtype=np.int16), np.eye(4)), tmp_path / "v.nii.gz")
    found = of(tmp_path / "v.nii.gz", volume=True)
    assert (found["width"], found["height"], found["depth"], found["bits"], found["format"]) == (20, 24, 6, 16, "nifti")
    assert found["bytes_per_pixel"] == found["bytes"] / 2880


def test_dicom() -> None:
    from pydicom.data import get_testdata_file

    found = of(Path(str(get_testdata_file("CT_small.dcm"))))
    assert (found["width"], found["height"], found["bits"], found["channels"]) == (128, 128, 16, 1)
    assert (found["format"], found["coding"], found["depth"]) == ("dicom", "1.2.840.10008.1.2.1", 1)


def test_an_array_has_no_bytes(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros((4, 20, 10, 3), dtype=np.uint8), b=np.zeros((4, 6, 20, 10), dtype=np.uint16))
    colour, volumes = (of(tmp_path / "x.npz", key=key) for key in "ab")
    assert colour == {"width": 10, "height": 20, "depth": 1, "aspect": 0.5, "bits": 8, "channels": 3, "format": "npz"}
    assert (volumes["depth"], volumes["bits"], volumes["channels"]) == (6, 16, 1)
    assert of(tmp_path / "x.npz", key="none") == {}


def test_what_cannot_be_read_has_a_size_at_most(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    Pillow.fromarray(GREY).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:20])
    (tmp_path / "empty.png").write_bytes(b"")
    assert of(tmp_path / "text.png") == {"bytes": 8}
    assert of(tmp_path / "cut.png") == {"bytes": 20}
    assert of(tmp_path / "empty.png") == {"bytes": 0}
    assert of(tmp_path / "none.png") == {}


def test_images_of_one_patient_are_one_group(tmp_path: Path) -> None:
    Pillow.fromarray(GREY).save(tmp_path / "x.png")
    (tmp_path / "t.csv").write_text("path,who\nx.png,p\nx.png,p\nx.png,q\n")
    found = file_statistics(find(ImageSet("s", paths=("t.csv",), patient="who"), tmp_path), "s")
    assert found.name == "s"
    assert found.groups[0] == found.groups[1] != found.groups[2]
    assert found.values.shape == (3, len(NUMBERS))
    assert file_statistics([]).values.shape == (0, len(NUMBERS))
