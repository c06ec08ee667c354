"""Meaning of DICOM pixels: units, inversion, colour, geometry, and what of the header may leave the file."""

from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

SYNTAXES = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]


@pytest.fixture
def ct(rng) -> np.ndarray:
    return rng.integers(0, 4096, (20, 31)).astype(np.uint16)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32"])
def test_stored_numbers(dicom, one, rng, syntax, dtype: str) -> None:
    info = np.iinfo(dtype)
    pixels = rng.integers(info.min, info.max, (20, 31), dtype=dtype, endpoint=True)
    image = one(dicom(pixels, syntax=syntax))
    assert image.pixels.dtype == pixels.dtype
    assert (image.bits, image.file_format, image.modality) == (8 * pixels.dtype.itemsize, "dicom", "CT")
    np.testing.assert_array_equal(image.pixels[0], pixels)


def test_rescale_to_hounsfield_units_and_window(dicom, one, ct) -> None:
    image = one(dicom(ct, RescaleSlope="1.5", RescaleIntercept="-1024", WindowCenter=["40", "300"], WindowWidth=["80", "1500"]))
    np.testing.assert_allclose(image.pixels[0], ct * 1.5 - 1024)
    assert image.window == (40.0, 80.0)


@pytest.mark.parametrize("width", ["0", "-5"])
def test_window_without_width_counts_as_absent(dicom, one, ct, width: str) -> None:
    assert one(dicom(ct, WindowCenter="40", WindowWidth=width)).window is None


@pytest.mark.parametrize("signed", [False, True])
def test_monochrome1_is_inverted_with_its_window(dicom, one, rng, signed: bool) -> None:
    pixels = rng.integers(-2000 if signed else 0, 2000, (20, 31)).astype(np.int16 if signed else np.uint16)
    attributes = {
        "RescaleSlope": "2",
        "RescaleIntercept": "-100",
        "BitsStored": 12,
        "HighBit": 11,
        "WindowCenter": "50",
        "WindowWidth": "10",
    }
    plain = one(dicom(pixels, **attributes))
    inverted = one(dicom(pixels, PhotometricInterpretation="MONOCHROME1", **attributes))
    total = plain.pixels + inverted.pixels
    assert np.ptp(total) == 0
    assert plain.window[0] + inverted.window[0] == total.flat[0]
    low, high = (-2048, 2047) if signed else (0, 4095)
    assert total.flat[0] == (low * 2 - 100) + (high * 2 - 100)


def test_unused_bits_are_masked(dicom, one, rng) -> None:
    pixels = rng.integers(-2048, 2048, (20, 31)).astype(np.int16)
    dirty = ((pixels & 0x0FFF) | 0x5000).astype(np.int16)
    np.testing.assert_array_equal(one(dicom(dirty, BitsStored=12, HighBit=11)).pixels[0], pixels)


def test_bits_at_the_upper_end_are_refused(dicom, reason, ct) -> None:
    assert reason(dicom(ct, BitsStored=12, HighBit=15)) == "unsupported"


@pytest.mark.parametrize(("keyword", "dtype"), [("FloatPixelData", "float32"), ("DoubleFloatPixelData", "float64")])
def test_floating_point_pixels(dicom, one, reason, rng, keyword: str, dtype: str) -> None:
    pixels = rng.standard_normal((20, 31)).astype(dtype)
    for broken in (False, True):
        if broken:
            pixels[3, 3] = np.nan
        path = dicom(np.zeros((20, 31), np.uint32), PixelData=None, BitsAllocated=8 * pixels.dtype.itemsize, **{keyword: pixels.tobytes()})
        _without(path, "PixelData", "BitsStored", "HighBit", "PixelRepresentation")
        if broken:
            assert reason(path) == "non_finite"
        else:
            np.testing.assert_array_equal(one(path).pixels[0], pixels)


def _without(path: Path, *keywords: str) -> None:
    import pydicom

    ds = pydicom.dcmread(path)
    for keyword in keywords:
        delattr(ds, keyword)
    ds.save_as(path, enforce_file_format=False)


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_rgb(dicom, one, rng, planar: int, syntax) -> None:
    pixels = rng.integers(0, 256, (20, 32, 3), dtype=np.uint8)
    stored = pixels if planar == 0 else np.ascontiguousarray(pixels.transpose(2, 0, 1)).reshape(20, 32, 3)
    found = one(dicom(stored, PlanarConfiguration=planar, syntax=syntax)).pixels
    np.testing.assert_array_equal(found, pixels.transpose(2, 0, 1))


def test_ybr_full_becomes_rgb(dicom, one, rng) -> None:
    ybr = rng.integers(0, 256, (20, 32, 3), dtype=np.uint8)
    y, cb, cr = (ybr[..., i].astype(float) - (0, 128, 128)[i] for i in range(3))
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb]).clip(0, 255)
    found = one(dicom(ybr, PhotometricInterpretation="YBR_FULL")).pixels
    assert np.abs(found - rgb).max() <= 1


def test_palette_of_16_bits(dicom, one, rng) -> None:
    index = rng.integers(0, 256, (20, 32), dtype=np.uint8)
    table = rng.integers(0, 65536, (3, 256)).astype(np.uint16)
    attributes = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, row in zip(("Red", "Green", "Blue"), table, strict=True):
        attributes[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        attributes[f"{colour}PaletteColorLookupTableData"] = row.tobytes()
    image = one(dicom(index, **attributes))
    assert image.bits == 16
    np.testing.assert_array_equal(image.pixels, table[:, index])


def test_palette_that_is_missing(dicom, reason, rng) -> None:
    path = dicom(rng.integers(0, 256, (20, 32), dtype=np.uint8), PhotometricInterpretation="PALETTE COLOR")
    assert reason(path) == "bad_photometric"


def test_modality_table(dicom, one, rng) -> None:
    index = rng.integers(0, 16, (20, 32)).astype(np.uint16)
    table = rng.integers(0, 4096, 16).astype(np.uint16)
    item = Dataset()
    item.LUTDescriptor, item.ModalityLUTType = [16, 0, 16], "US"
    item.add_new(0x00283006, "OW", table.tobytes())
    np.testing.assert_array_equal(one(dicom(index, ModalityLUTSequence=[item])).pixels[0], table[index])


def test_frames_one_by_one(dicom, read, rng) -> None:
    pixels = rng.integers(0, 4096, (4, 20, 31)).astype(np.uint16)
    found = read(dicom(pixels, frames=True))
    assert [image.item for image in found] == ["x#0", "x#1", "x#2", "x#3"]
    assert len({image.digest for image in found}) == 4
    np.testing.assert_array_equal(np.concatenate([image.pixels for image in found]), pixels)


def test_packed_bits_of_odd_frames(dicom, read, rng) -> None:
    pixels = rng.integers(0, 2, (3, 9, 11), dtype=np.uint8)
    packed = np.packbits(pixels.reshape(-1), bitorder="little")
    path = dicom(pixels, frames=True, BitsAllocated=1, BitsStored=1, HighBit=0, PixelData=packed.tobytes() + b"\0" * (len(packed) % 2))
    np.testing.assert_array_equal(np.concatenate([image.pixels for image in read(path)]), pixels)


def _groups(slopes: list[float], positions: list[float]) -> dict[str, object]:
    shared, frames = Dataset(), []
    measures, orientation = Dataset(), Dataset()
    measures.PixelSpacing, orientation.ImageOrientationPatient = [0.5, 0.7], [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    for slope, z in zip(slopes, positions, strict=True):
        frame, transform, position, window = Dataset(), Dataset(), Dataset(), Dataset()
        transform.RescaleSlope, transform.RescaleIntercept, transform.RescaleType = slope, -10, "US"
        position.ImagePositionPatient = [0, 0, z]
        window.WindowCenter, window.WindowWidth = 100 * slope, 50
        frame.PixelValueTransformationSequence, frame.PlanePositionSequence, frame.FrameVOILUTSequence = [transform], [position], [window]
        frames.append(frame)
    return {"SharedFunctionalGroupsSequence": [shared], "PerFrameFunctionalGroupsSequence": frames}


def test_functional_groups_of_enhanced_files(dicom, read, one, rng) -> None:
    pixels = rng.integers(0, 4096, (3, 20, 31)).astype(np.uint16)
    path = dicom(pixels, frames=True, **_groups([1.0, 2.0, 3.0], [4.0, 0.0, 2.0]))
    found = read(path)
    for index, image in enumerate(found):
        np.testing.assert_allclose(image.pixels[0], pixels[index] * (index + 1.0) - 10)
        assert image.spacing == (0.5, 0.7)
        assert image.window == (100.0 * (index + 1), 50.0)
    volume = one(path, volume=True)
    assert volume.spacing == (2.0, 0.5, 0.7)
    np.testing.assert_array_equal(volume.pixels[0], np.concatenate([found[i].pixels for i in (1, 2, 0)]))


@pytest.mark.parametrize("spacing", [["0", "0.5"], ["-1", "0.5"], ["0.5", "-0.5"]])
@pytest.mark.parametrize("keyword", ["PixelSpacing", "ImagerPixelSpacing"])
def test_impossible_spacing(dicom, reason, ct, keyword: str, spacing: list[str]) -> None:
    assert reason(dicom(ct, **{keyword: spacing})) == "bad_geometry"


def test_spacing_in_the_order_of_the_axes(dicom, one, ct) -> None:
    assert one(dicom(ct, PixelSpacing=["0.5", "0.25"])).spacing == (0.5, 0.25)
    assert one(dicom(ct, ImagerPixelSpacing=["0.1", "0.2"])).spacing == (0.1, 0.2)
    assert one(dicom(ct)).spacing is None


@pytest.mark.parametrize(
    ("photometric", "samples"),
    [("RGB", 1), ("YBR_FULL", 1), ("MONOCHROME2", 3), ("PALETTE COLOR", 3), ("NONSENSE", 1), ("", 1), ("YBR_RCT", 3)],
)
def test_wrong_photometric_interpretation(dicom, reason, rng, photometric: str, samples: int) -> None:
    shape = (20, 32) if samples == 1 else (20, 32, 3)
    assert reason(dicom(rng.integers(0, 256, shape, dtype=np.uint8), PhotometricInterpretation=photometric)) == "bad_photometric"


def test_patients_are_equal_or_not_and_never_named(dicom, one, ct) -> None:
    keys = [
        one(dicom(ct, PatientID=name, IssuerOfPatientID=issuer)).group
        for name, issuer in (("A1", ""), ("A1", ""), ("A2", ""), ("A1", "B"), ("", ""))
    ]
    assert keys[0] == keys[1] != ""
    assert len(set(keys)) == 4
    assert keys[4] == ""
    assert "A1" not in "".join(keys)


def test_device_data_from_a_fixed_list(dicom, one, ct) -> None:
    image = one(
        dicom(
            ct,
            Manufacturer="ACME\nCorp",
            ManufacturerModelName="X" * 64,
            BodyPartExamined="HEAD",
            KVP="120",
            SliceThickness="1.25",
            MagneticFieldStrength="3",
        )
    )
    assert dict(image.meta) == {
        "manufacturer": "ACMECorp",
        "model": "X" * 40,
        "body_part": "HEAD",
        "kvp": "120",
        "slice_thickness_mm": "1.25",
        "field_strength_t": "3",
    }
    assert not image.identifiers


def test_identifiers_only_when_asked_for(dicom, one, ct) -> None:
    path = dicom(ct, PatientName="Doe^Jane", PatientID="4711", AccessionNumber="99", StudyDate="20240102")
    found = one(path, identifiers=True).identifiers
    assert found["PatientName"] == "Doe^Jane"
    assert (found["PatientID"], found["AccessionNumber"], found["StudyDate"]) == ("4711", "99", "20240102")
    assert not one(path).identifiers
    assert "Doe" not in repr(one(path, identifiers=True))
