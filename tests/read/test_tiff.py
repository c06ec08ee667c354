"""TIFF against the arrays it was made from, and against Pillow."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tifffile


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float32", "float64"])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_grey_pages(tmp_path: Path, rng, read, dtype: str, compression: str | None) -> None:
    pixels = (rng.random((3, 20, 30)) * 200).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", compression=compression)
    found = read(tmp_path / "a.tif")
    assert [image.item for image in found] == ["x#0", "x#1", "x#2"]
    assert {image.bits for image in found} == {pixels.dtype.itemsize * 8}
    np.testing.assert_array_equal(np.concatenate([image.pixels for image in found]), pixels)


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_rgb_planar_or_not(tmp_path: Path, rng, one, planar: str) -> None:
    pixels = rng.integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    stored = pixels if planar == "contig" else pixels.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar)
    np.testing.assert_array_equal(one(tmp_path / "a.tif").pixels.transpose(1, 2, 0), pixels)


def test_white_is_zero_is_inverted(tmp_path: Path, rng, one) -> None:
    pixels = rng.integers(0, 65536, (20, 30), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="miniswhite")
    np.testing.assert_array_equal(one(tmp_path / "a.tif").pixels[0], 65535 - pixels)


def test_palette(tmp_path: Path, rng, one) -> None:
    index = rng.integers(0, 256, (20, 30), dtype=np.uint8)
    table = rng.integers(0, 256, (3, 256)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", index, photometric="palette", colormap=table * 257)
    np.testing.assert_array_equal(one(tmp_path / "a.tif").pixels, table[:, index])


def test_one_bit(tmp_path: Path, rng, one) -> None:
    pixels = rng.integers(0, 2, (16, 24), dtype=np.uint8)
    PIL.Image.fromarray(pixels.astype(bool)).save(tmp_path / "a.tif")
    image = one(tmp_path / "a.tif")
    assert image.bits == 1
    np.testing.assert_array_equal(image.pixels[0], pixels)


def test_alpha_straight_is_laid_onto_black(tmp_path: Path, rng, one) -> None:
    pixels = rng.integers(0, 256, (20, 30, 4), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["unassalpha"])
    expected = np.rint(pixels[..., :3] * (pixels[..., 3:] / 255))
    np.testing.assert_array_equal(one(tmp_path / "a.tif").pixels.transpose(1, 2, 0), expected)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "RGB"])
def test_colour_modes_as_pillow_reads_them(tmp_path: Path, one, mode: str) -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 64, dtype=np.uint8), (32, 64))
    rgb = np.stack([ramp, ramp[:, ::-1], np.full_like(ramp, 128)], -1)
    path = tmp_path / "a.tif"
    PIL.Image.fromarray(rgb).convert(mode).save(path, compression="jpeg" if mode == "YCbCr" else None, quality=98)
    found = one(path).pixels.transpose(1, 2, 0).astype(int)
    assert np.abs(found - np.asarray(PIL.Image.open(path).convert("RGB"))).max() <= 2


def test_orientation_tag(tmp_path: Path, rng, one) -> None:
    pixels = rng.integers(0, 256, (20, 30), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", extratags=[(274, 3, 1, 6, True)])
    np.testing.assert_array_equal(one(tmp_path / "a.tif").pixels[0], np.rot90(pixels, -1))


def test_thumbnails_are_left_out(tmp_path: Path, rng, read) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        tif.write(rng.integers(0, 256, (64, 64), dtype=np.uint8), photometric="minisblack")
        tif.write(rng.integers(0, 256, (16, 16), dtype=np.uint8), photometric="minisblack", subfiletype=1)
    (image,) = read(tmp_path / "a.tif")
    assert image.pixels.shape == (1, 64, 64)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("drop", [10, 3000])
def test_truncated(tmp_path: Path, rng, read, compression: str | None, drop: int) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, rng.integers(0, 256, (64, 64), dtype=np.uint8), photometric="minisblack", compression=compression)
    path.write_bytes(path.read_bytes()[:-drop])
    (row,) = read(path)
    assert row.reason == "truncated"


def test_chain_of_pages_that_leads_back(tmp_path: Path, rng, read) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, rng.integers(0, 256, (2, 16, 16), dtype=np.uint8), photometric="minisblack")
    with tifffile.TiffFile(path) as tif:
        first, second = tif.pages[0].offset, tif.pages[1].offset
    data = bytearray(path.read_bytes())
    count = int.from_bytes(data[second : second + 2], "little")
    data[second + 2 + 12 * count : second + 6 + 12 * count] = first.to_bytes(4, "little")
    path.write_bytes(data)
    found = read(path)
    assert len(found) <= 3
    assert found[-1].reason == "unreadable"


def test_page_larger_than_the_limit(tmp_path: Path, reason) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((64, 64), np.uint8), photometric="minisblack")
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tif.pages[0].tags["ImageWidth"].overwrite(60_000)
        tif.pages[0].tags["ImageLength"].overwrite(60_000)
    assert reason(path) == "bomb"
