"""Files of other people: pydicom's own test files, and the project's local data where they are."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pydicom.data import data_manager

from offmap.core.types import REASONS, Image, NotAssessed
from offmap.read.load import load
from offmap.read.sources import find

PYDICOM = Path(data_manager.DATA_ROOT) / "test_files"
SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the local data folder ../shared/data is absent")


def _outcomes(folder: Path, *, volumes: bool = False) -> list[Image | NotAssessed]:
    return [outcome for source in find([folder], volumes=volumes).sources for outcome in load(source)]


def test_all_of_pydicoms_files() -> None:
    found = _outcomes(PYDICOM)
    reasons = Counter(row.reason for row in found if isinstance(row, NotAssessed))
    assert set(reasons) <= set(REASONS)
    assert reasons["failed"] == 0
    images = [row for row in found if isinstance(row, Image)]
    assert len(images) > 100
    for image in images:
        assert image.pixels.dtype.isnative
        assert image.pixels.shape[0] in (1, 3)
        assert image.frame.shape == image.spatial
    assert len({image.digest for image in images}) > 90


def test_pydicoms_series_as_volumes() -> None:
    found = _outcomes(PYDICOM / "dicomdirtests", volumes=True)
    assert Counter(getattr(row, "reason", "ok") for row in found)["failed"] == 0
    assert any(isinstance(row, Image) and row.pixels.shape[1] > 1 for row in found)


@needs_shared
def test_local_dicom_slices_are_all_read() -> None:
    found = _outcomes(SHARED / "dicom")
    assert len(found) == 258
    for image in found:
        assert isinstance(image, Image)
        assert image.spacing is not None
        assert image.modality in ("CT", "MR")
    ct = [image.pixels for image in found if image.modality == "CT"]
    assert min(pixels.min() for pixels in ct) >= -4096


@needs_shared
def test_local_volumes_agree_with_nibabel() -> None:
    import nibabel as nib

    few = sorted((SHARED / "volumes/hippocampus_mr").glob("*"))[:5]
    for path in [*sorted((SHARED / "volumes/other").glob("*.nii.gz")), *few]:
        sources = find([path], volumes=True).sources
        outcome = next(iter(load(sources[0])))
        assert isinstance(outcome, Image)
        canonical = nib.as_closest_canonical(nib.load(path))
        expected = np.asarray(canonical.dataobj[..., 0] if canonical.ndim == 4 else canonical.dataobj)
        np.testing.assert_allclose(outcome.pixels[0], expected[::-1, ::-1].transpose(2, 1, 0), rtol=1e-5)
        np.testing.assert_allclose(outcome.spacing, canonical.header.get_zooms()[2::-1], rtol=1e-4)


@needs_shared
def test_local_medmnist_arrays() -> None:
    for path in sorted((SHARED / "medmnist").glob("*.npz")):
        array = np.load(path)["val_images"]
        found = [outcome for source in find([f"{path}::val_images"]).sources for outcome in load(source)]
        assert len(found) == len(array)
        pixels = np.stack([image.pixels for image in found])
        np.testing.assert_array_equal(np.moveaxis(pixels, 1, -1).reshape(array.shape), array)
