"""PNG and JPEG against the arrays they were made from."""

import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import PIL.Image
import pytest


def test_grey_jpeg_stays_one_channel(tmp_path: Path, rng, one) -> None:
    path = tmp_path / "a.jpg"
    PIL.Image.fromarray(rng.integers(0, 256, (40, 50), dtype=np.uint8)).save(path, quality=90)
    image = one(path)
    assert image.pixels.shape == (1, 40, 50)
    assert (image.bits, image.file_format, image.spacing) == (8, "jpeg", None)
    np.testing.assert_array_equal(image.pixels[0], np.asarray(PIL.Image.open(path)))


def test_suffix_is_not_looked_at(tmp_path: Path, rng, one) -> None:
    path = tmp_path / "a.dcm"
    PIL.Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path, format="PNG")
    assert one(path).file_format == "png"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, rng, one, orientation: int) -> None:
    path = tmp_path / "a.jpg"
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    PIL.Image.fromarray(rng.integers(0, 256, (24, 40, 3), dtype=np.uint8)).save(path, exif=exif, quality=95)
    from PIL import ImageOps

    expected = np.asarray(ImageOps.exif_transpose(PIL.Image.open(path)))
    np.testing.assert_array_equal(one(path).pixels.transpose(1, 2, 0), expected)


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3)])
def test_sixteen_bit_png_is_kept(tmp_path: Path, rng, one, shape: tuple[int, ...]) -> None:
    pixels = rng.integers(0, 65536, shape, dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(pixels))
    image = one(tmp_path / "a.png")
    assert (image.bits, image.pixels.dtype) == (16, np.uint16)
    np.testing.assert_array_equal(np.squeeze(image.pixels.transpose(1, 2, 0)), pixels)


def test_alpha_is_laid_onto_black(tmp_path: Path, rng, one) -> None:
    pixels = rng.integers(0, 256, (20, 30, 4), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = np.rint(pixels[..., :3] * (pixels[..., 3:] / 255))
    np.testing.assert_array_equal(one(tmp_path / "a.png").pixels.transpose(1, 2, 0), expected)


def test_sixteen_bit_alpha(tmp_path: Path, rng, one) -> None:
    pixels = rng.integers(0, 65536, (20, 30, 4), dtype=np.uint16)
    pixels[:10, :, 3], pixels[10:, :, 3] = 0, 65535
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(pixels))
    found = one(tmp_path / "a.png").pixels
    assert not found[:, :10].any()
    np.testing.assert_array_equal(found[:, 10:].transpose(1, 2, 0), pixels[10:, :, :3])


def test_transparent_colour_becomes_black(tmp_path: Path, rng, one) -> None:
    pixels = rng.integers(0, 250, (20, 30), dtype=np.uint8)
    pixels[:5] = 255
    PIL.Image.fromarray(pixels).save(tmp_path / "a.png", transparency=255)
    found = one(tmp_path / "a.png").pixels
    assert found.shape == (1, 20, 30)
    assert not found[0, :5].any()
    np.testing.assert_array_equal(found[0, 5:], pixels[5:])


def test_palette_of_colours_and_of_greys(tmp_path: Path, rng, one) -> None:
    index = rng.integers(0, 256, (20, 30), dtype=np.uint8)
    for name, table in (
        ("colour", rng.integers(0, 256, (256, 3), dtype=np.uint8)),
        ("grey", np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1)),
    ):
        image = PIL.Image.fromarray(index, mode=None).convert("L")
        image.putpalette(table.tobytes())
        image.save(tmp_path / f"{name}.png")
        found = one(tmp_path / f"{name}.png").pixels
        expected = table[index].transpose(2, 0, 1)
        np.testing.assert_array_equal(found, expected if name == "colour" else expected[:1])


def test_cmyk_jpeg(tmp_path: Path, one) -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 64, dtype=np.uint8), (32, 64))
    rgb = np.stack([ramp, ramp[:, ::-1], np.full_like(ramp, 128)], -1)
    PIL.Image.fromarray(rgb).convert("CMYK").save(tmp_path / "a.jpg", quality=98)
    assert np.abs(one(tmp_path / "a.jpg").pixels.transpose(1, 2, 0).astype(int) - rgb).max() < 12


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_few_bits_keep_stored_numbers(tmp_path: Path, rng, one, depth: int) -> None:
    pixels = rng.integers(0, 2**depth, (16, 24), dtype=np.uint8)
    bits = np.unpackbits(pixels[..., None], axis=-1)[..., 8 - depth :].reshape(16, -1)
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(bits, axis=1))
    (tmp_path / "a.png").write_bytes(_png(24, 16, depth, 0, zlib.compress(rows)))
    image = one(tmp_path / "a.png")
    assert image.bits == depth
    np.testing.assert_array_equal(image.pixels[0], pixels)


def _png(width: int, height: int, depth: int, colour: int, packed: bytes) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def test_png_of_900_megapixels_is_refused_by_its_header(tmp_path: Path, reason) -> None:
    (tmp_path / "a.png").write_bytes(_png(30_000, 30_000, 8, 0, zlib.compress(bytes(1_000_000))))
    assert reason(tmp_path / "a.png") == "bomb"


def test_png_that_expands_a_thousand_times_is_refused(tmp_path: Path, reason) -> None:
    (tmp_path / "a.png").write_bytes(_png(15_000, 15_000, 8, 0, zlib.compress(bytes(10_000_000))))
    assert reason(tmp_path / "a.png") == "bomb"


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.95])
def test_truncated_files(tmp_path: Path, rng, reason, kind: str, share: float) -> None:
    path = tmp_path / "a"
    PIL.Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path, format=kind)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert reason(path) == "truncated"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_sixteen_bit_png(tmp_path: Path, rng, reason, share: float) -> None:
    data = imagecodecs.png_encode(rng.integers(0, 65536, (64, 64, 3), dtype=np.uint16))
    (tmp_path / "a.png").write_bytes(data[: int(len(data) * share)])
    assert reason(tmp_path / "a.png") == "truncated"


def test_progressive_jpeg_cut_short(tmp_path: Path, rng, reason) -> None:
    path = tmp_path / "a.jpg"
    PIL.Image.fromarray(rng.integers(0, 256, (64, 64), dtype=np.uint8)).save(path, progressive=True)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert reason(path) == "truncated"
