"""Compressed frames: one pinned decoder a syntax, checked against the pixels that went in, and cut short in every way."""

import io
from collections.abc import Callable

import imagecodecs
import numpy as np
import PIL.Image
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.pixels import get_decoder, get_encoder
from pydicom.uid import (
    HTJ2K,
    MPEG2MPML,
    UID,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from offmap.core.types import Source
from offmap.read.dicom_pixels import DECODERS
from offmap.read.load import load


def _with_pydicom(pixels: np.ndarray, syntax: UID) -> bytes:
    bits = 8 * pixels.dtype.itemsize
    options = {"rows": pixels.shape[0], "columns": pixels.shape[1], "samples_per_pixel": 3 if pixels.ndim == 3 else 1}
    options |= {"photometric_interpretation": "RGB" if pixels.ndim == 3 else "MONOCHROME2", "bits_allocated": bits, "bits_stored": bits}
    options |= {"pixel_representation": int(pixels.dtype.kind == "i"), "number_of_frames": 1, "planar_configuration": 0}
    plugin = {RLELossless: "pydicom", JPEGLSLossless: "pyjpegls", JPEG2000Lossless: "pylibjpeg"}[syntax]
    if syntax == JPEG2000Lossless:
        options["use_mct"] = False
    return bytes(get_encoder(syntax).encode(pixels, encoding_plugin=plugin, **options))


def _lossless_jpeg(pixels: np.ndarray, syntax: UID) -> bytes:
    return bytes(imagecodecs.ljpeg_encode(pixels, bitspersample=8 * pixels.dtype.itemsize))


def _htj2k(pixels: np.ndarray, syntax: UID) -> bytes:
    return bytes(imagecodecs.htj2k_encode(pixels))


LOSSLESS: dict[UID, Callable[[np.ndarray, UID], bytes]] = {
    RLELossless: _with_pydicom,
    JPEGLSLossless: _with_pydicom,
    JPEG2000Lossless: _with_pydicom,
    HTJ2KLossless: _htj2k,
    JPEGLossless: _lossless_jpeg,
    JPEGLosslessSV1: _lossless_jpeg,
}


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda u: u.keyword)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_lossless_syntaxes_give_the_pixels_back(dicom, one, rng, encapsulated, syntax: UID, dtype: str) -> None:
    pixels = rng.integers(0, 2 ** (8 * np.dtype(dtype).itemsize), (40, 64)).astype(dtype)
    data = encapsulated(LOSSLESS[syntax](pixels, syntax))
    np.testing.assert_array_equal(one(dicom(pixels, syntax=syntax, data=data)).pixels[0], pixels)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=lambda u: u.keyword)
def test_lossless_signed_and_colour(dicom, one, rng, encapsulated, syntax: UID) -> None:
    signed = rng.integers(-2000, 2000, (40, 64)).astype(np.int16)
    found = one(dicom(signed, syntax=syntax, data=encapsulated(_with_pydicom(signed, syntax)))).pixels
    np.testing.assert_array_equal(found[0], signed)
    colour = rng.integers(0, 256, (40, 64, 3), dtype=np.uint8)
    found = one(dicom(colour, syntax=syntax, data=encapsulated(_with_pydicom(colour, syntax)))).pixels
    np.testing.assert_array_equal(found, colour.transpose(2, 0, 1))


def _smooth(top: int) -> np.ndarray:
    y, x = np.mgrid[:64, :96]
    return ((np.sin(y / 9) + np.cos(x / 13) + 2) / 4 * top).astype(np.uint16 if top > 255 else np.uint8)


def _baseline(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, format="JPEG", quality=95)
    return file.getvalue()


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGExtended12Bit], ids=lambda u: u.keyword)
def test_baseline_jpeg(dicom, one, encapsulated, syntax: UID) -> None:
    pixels = _smooth(255)
    found = one(dicom(pixels, syntax=syntax, data=encapsulated(_baseline(pixels)))).pixels[0]
    assert np.abs(found.astype(int) - pixels).max() <= 4


def test_extended_jpeg_of_12_bits(dicom, one, encapsulated) -> None:
    pixels = _smooth(4095)
    data = encapsulated(bytes(imagecodecs.jpeg8_encode(pixels, level=95, bitspersample=12)))
    image = one(dicom(pixels, syntax=JPEGExtended12Bit, data=data, BitsStored=12, HighBit=11))
    assert image.bits == 12
    assert np.abs(image.pixels[0].astype(int) - pixels).max() <= 40


def test_lossy_htj2k(dicom, one, encapsulated) -> None:
    pixels = _smooth(4095)
    data = encapsulated(bytes(imagecodecs.htj2k_encode(pixels)))
    found = one(dicom(pixels, syntax=HTJ2K, data=data)).pixels[0]
    np.testing.assert_array_equal(found, pixels)


def _frames(syntax: UID, rng: np.random.Generator) -> tuple[np.ndarray, bytes]:
    if syntax in LOSSLESS:
        pixels = rng.integers(0, 4096, (40, 64)).astype(np.uint16)
        return pixels, LOSSLESS[syntax](pixels, syntax)
    pixels = _smooth(255)
    return pixels, _baseline(pixels)


@pytest.mark.parametrize("syntax", [*LOSSLESS, JPEGBaseline8Bit], ids=lambda u: u.keyword)
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9, 0.97])
def test_truncated_frame_is_never_decoded(dicom, reason, rng, encapsulated, syntax: UID, share: float) -> None:
    pixels, frame = _frames(syntax, rng)
    data = encapsulated(frame[: int(len(frame) * share)])
    assert reason(dicom(pixels, syntax=syntax, data=data)) in ("truncated", "unreadable" if share == 0.01 else "truncated")


@pytest.mark.parametrize("syntax", [*LOSSLESS, JPEGBaseline8Bit], ids=lambda u: u.keyword)
@pytest.mark.parametrize("drop", [20, 500])
def test_truncated_file(dicom, reason, rng, encapsulated, syntax: UID, drop: int) -> None:
    pixels, frame = _frames(syntax, rng)
    path = dicom(pixels, syntax=syntax, data=encapsulated(frame))
    path.write_bytes(path.read_bytes()[:-drop])
    assert reason(path) == "truncated"


@pytest.mark.parametrize("drop", [2, 100, 1000])
def test_truncated_native(dicom, reason, rng, drop: int) -> None:
    path = dicom(rng.integers(0, 4096, (40, 64)).astype(np.uint16))
    path.write_bytes(path.read_bytes()[:-drop])
    assert reason(path) == "truncated"


def test_size_of_the_codestream_must_be_that_of_the_header(dicom, reason, rng, encapsulated) -> None:
    pixels, frame = _frames(JPEG2000Lossless, rng)
    assert reason(dicom(pixels, syntax=JPEG2000Lossless, data=encapsulated(frame), Rows=64, Columns=40)) == "bad_geometry"
    rgb = dicom(np.zeros((40, 64, 3), np.uint8), syntax=JPEG2000Lossless, data=encapsulated(frame))
    assert reason(rgb) == "bad_photometric"


@pytest.mark.parametrize("syntax", [None, RLELossless, JPEG2000Lossless], ids=["native", "rle", "j2k"])
def test_rows_and_columns_of_65535(dicom, reason, rng, encapsulated, syntax: UID | None) -> None:
    pixels, frame = _frames(syntax or RLELossless, rng)
    options = {} if syntax is None else {"syntax": syntax, "data": encapsulated(frame)}
    assert reason(dicom(pixels, Rows=65535, Columns=65535, **options)) == "bomb"


def test_two_billion_frames(dicom, reason, rng, encapsulated) -> None:
    pixels, frame = _frames(RLELossless, rng)
    assert reason(dicom(pixels, NumberOfFrames=2**31 - 1)) == "truncated"
    assert reason(dicom(pixels, NumberOfFrames=2**31 - 1, syntax=RLELossless, data=encapsulated(frame))) == "truncated"


@pytest.mark.parametrize("table", ["none", "basic", "extended"])
@pytest.mark.parametrize("fragments", [1, 3])
def test_frames_are_found_in_every_layout(dicom, read, rng, table: str, fragments: int) -> None:
    pixels = rng.integers(0, 4096, (4, 40, 64)).astype(np.uint16)
    frames = [_with_pydicom(p, JPEG2000Lossless) for p in pixels]
    extra = {}
    if table == "extended":
        data, offsets, lengths = encapsulate_extended(frames)
        extra = {"ExtendedOffsetTable": offsets, "ExtendedOffsetTableLengths": lengths}
    else:
        data = encapsulate(frames, fragments_per_frame=fragments, has_bot=table == "basic")
    found = read(dicom(pixels, frames=True, syntax=JPEG2000Lossless, data=data, **extra))
    if table == "none" and fragments > 1:
        assert [row.reason for row in found] == ["truncated"]
    else:
        np.testing.assert_array_equal(np.concatenate([image.pixels for image in found]), pixels)


def test_one_damaged_frame_does_not_stop_the_others(dicom, read, rng) -> None:
    pixels = rng.integers(0, 4096, (3, 40, 64)).astype(np.uint16)
    frames = [_with_pydicom(p, JPEGLSLossless) for p in pixels]
    frames[1] = frames[1][: len(frames[1]) // 2]
    found = read(dicom(pixels, frames=True, syntax=JPEGLSLossless, data=encapsulate(frames)))
    assert [getattr(row, "reason", "ok") for row in found] == ["ok", "truncated", "ok"]
    np.testing.assert_array_equal(found[2].pixels[0], pixels[2])


def test_video_and_private_syntaxes(dicom, reason, rng, encapsulated) -> None:
    pixels, frame = _frames(RLELossless, rng)
    assert reason(dicom(pixels, syntax=MPEG2MPML, data=encapsulated(frame))) == "unsupported"
    assert reason(dicom(pixels, syntax=UID("1.2.3.4.5"), data=encapsulated(frame))) == "unsupported"


def test_every_pinned_decoder_is_installed() -> None:
    for syntax, plugin in DECODERS.items():
        assert plugin in get_decoder(UID(syntax)).available_plugins


@pytest.mark.parametrize(
    ("one_file", "other_file", "tolerance"),
    [
        ("MR_small.dcm", "MR_small_RLE.dcm", 0),
        ("MR_small.dcm", "MR_small_jp2klossless.dcm", 0),
        ("MR_small.dcm", "MR_small_jpeg_ls_lossless.dcm", 0),
        ("MR_small.dcm", "MR_small_implicit.dcm", 0),
        ("MR_small.dcm", "MR_small_bigendian.dcm", 0),
        ("MR_small.dcm", "MR_small_padded.dcm", 0),
        ("rtdose.dcm", "rtdose_rle.dcm", 0),
        ("rtdose.dcm", "rtdose_expb.dcm", 0),
        ("SC_rgb_rle.dcm", "SC_rgb_jpeg_gdcm.dcm", 0),
        ("SC_rgb_rle.dcm", "SC_rgb_jpeg_dcmtk.dcm", 6),
        ("SC_rgb_rle.dcm", "SC_rgb_dcmtk_+eb+cr.dcm", 2),
        ("SC_rgb_rle.dcm", "SC_rgb_dcmtk_+eb+cy+np.dcm", 6),
        ("SC_rgb_rle.dcm", "SC_ybr_full_422_uncompressed.dcm", 6),
        ("SC_rgb_jpeg_dcmd.dcm", "SC_rgb_jpeg.dcm", 2),
        ("liver_1frame.dcm", "liver_expb_1frame.dcm", 0),
    ],
)
def test_twin_files_of_pydicom_agree(one_file: str, other_file: str, tolerance: int) -> None:
    pairs = [[image.pixels.astype(float) for image in load(Source(_local(name), name))] for name in (one_file, other_file)]
    for a, b in zip(*pairs, strict=True):
        assert np.quantile(np.abs(a - b), 0.9 if tolerance else 1) <= tolerance  # lossy twins differ at the edges of their colour blocks


@pytest.mark.parametrize(
    "name", ["693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm", "JPEG2000.dcm", "GDCMJ2K_TextGBR.dcm", "JPEGLSNearLossless_16.dcm"]
)
def test_another_decoder_agrees(name: str) -> None:
    (image,) = load(Source(_local(name), name))
    ds = pydicom.dcmread(_local(name))
    other, _ = get_decoder(ds.file_meta.TransferSyntaxUID).as_array(ds, decoding_plugin="gdcm")
    expected = other * float(ds.get("RescaleSlope", 1)) + float(ds.get("RescaleIntercept", 0))
    np.testing.assert_allclose(np.squeeze(image.pixels.transpose(1, 2, 0)), expected, atol=1)


def test_twelve_bit_test_file_matches_its_codestream() -> None:
    (image,) = load(Source(_local("JPGExtended.dcm"), "x"))
    frame = next(generate_frames(pydicom.dcmread(_local("JPGExtended.dcm")).PixelData, number_of_frames=1))
    np.testing.assert_array_equal(image.pixels[0], imagecodecs.jpeg_decode(frame))


def _local(name: str):
    from pathlib import Path

    found = get_testdata_file(name, download=False)
    if found is None:
        pytest.skip(f"pydicom does not carry {name}")
    return Path(found)
