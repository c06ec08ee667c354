"""Real files, where a folder ``shared`` with them lies beside the project."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from offmap.core.types import Image, Source
from offmap.prepare.crop import Crop
from offmap.prepare.detail import Detail
from offmap.prepare.mask import Mask
from offmap.prepare.preparation import Preparation
from offmap.prepare.resize import Resize
from offmap.prepare.window import Window
from offmap.read.load import load
from offmap.simulate.forms import FORMS

DATA = Path(__file__).parents[2].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the folder shared/data is not there")


def standard(size: int) -> Preparation:
    return Preparation((Window(), Crop(), Resize(size=size)))


def read(folder: str, pattern: str, count: int) -> list[Image]:
    files = sorted((DATA / folder).rglob(pattern))[:: max(1, len(sorted((DATA / folder).rglob(pattern))) // count)][:count]
    images = [outcome for file in files for outcome in load(Source(file, file.name)) if isinstance(outcome, Image)]
    assert images
    return images


@pytest.mark.parametrize("folder", ["kermany", "isic2017", "lung_histology", "ixi", "busi"])
def test_pictures_of_every_kind_are_prepared(folder: str) -> None:
    for image in read(f"images/{folder}", "*.jpg", 4):
        out = standard(160).apply(image)
        assert out.spatial == (160, 160)
        assert out.pixels.min() >= 0
        assert 0.02 < out.pixels.std() < 0.5
        assert out.pixels.max() <= 1
        expected = np.clip(image.pixels.mean() / 255, 0, 1)
        if image.spatial[0] == image.spatial[1]:
            assert out.pixels.mean() == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("folder", ["kermany", "isic2017", "lung_histology"])
def test_file_forms_of_a_picture_stay_close_and_closer_with_one_level_of_detail(folder: str) -> None:
    for image in read(f"images/{folder}", "*.jpg", 3):
        even = Preparation((Window(), Crop(), Detail(112), Resize(size=160)))
        for name, form in FORMS.items():
            direct, careful = (np.abs(p.apply(image).pixels - p.apply(form(image)).pixels).mean() for p in (standard(160), even))
            assert direct < 0.035, name
            if name == "half":
                assert careful < direct


def test_ct_slices_are_windowed_by_hounsfield_units() -> None:
    for image in read("dicom/ct_ge", "*", 3):
        assert image.modality == "CT"
        out = Window()(image)
        inside = np.abs(image.pixels) < 990
        assert np.allclose(out.pixels[inside], (image.pixels[inside] + 1000) / 2000, atol=1e-5)
        assert Window(ct="brain")(image).pixels.std() > out.pixels.std()


@pytest.mark.parametrize("folder", ["mr_ge", "mr_siemens_prisma", "mr_toshiba", "mr_uih"])
def test_mr_of_any_scanner_fills_the_range(folder: str) -> None:
    for image in read(f"dicom/{folder}", "*", 3):
        out = Window()(image).pixels
        assert np.quantile(out[image.pixels > image.pixels.min()], [0.004, 0.996]) == pytest.approx([0, 1], abs=0.05)
        doubled = Window()(dataclasses.replace(image, pixels=image.pixels.astype(np.float32) * 2)).pixels
        assert np.allclose(out, doubled, atol=1e-5)


def test_the_head_is_found_in_mr_slices() -> None:
    steps = Preparation((Window(), Mask(), Resize(size=96)))
    for image in read("dicom/mr_t1_studyforrest", "*", 40)[15:25:3]:
        mask = steps.apply(image).mask
        assert mask is not None
        assert 0.1 < mask.mean() < 0.9


def test_volumes_are_prepared_whole() -> None:
    for file in sorted((DATA / "volumes" / "hippocampus_mr").glob("*.nii*"))[:3]:
        (image,) = load(Source(file, file.name, volume=True))
        assert isinstance(image, Image)
        out = standard(64).apply(image)
        assert out.spatial == (image.spatial[0], 64, 64)
        assert out.spacing is not None
        assert 0.2 < out.pixels.mean() < 0.8
