"""File forms: the same content, another size, another compression."""

import dataclasses
import hashlib
import io

import numpy as np
import pytest
from PIL import Image as Pillow

from offmap.core.types import Frame, Image
from offmap.simulate.forms import FORMS, half, jpeg, random_form


def smooth(height: int, width: int, channels: int = 1) -> np.ndarray:
    y, x = np.mgrid[:height, :width] / 60
    planes = [120 + 60 * np.sin(3 * x + c) + 50 * np.cos(4 * y - c) for c in range(channels)]
    return np.rint(np.stack(planes)).astype(np.uint8)


def image(pixels: np.ndarray, name: str = "a", bits: int = 8) -> Image:
    digest = hashlib.sha256(name.encode()).hexdigest()
    return Image(pixels, name, Frame.whole(pixels.shape[1:]), file_format="png", digest=digest, bits=bits, spacing=(0.5, 0.5))


def kinds(images: list[Image], seed: int) -> list[tuple[bool, bool]]:
    """For every image: was it halved, was it changed otherwise."""
    found = []
    for i in images:
        out = random_form(i, seed=seed)
        halved = out.spatial != i.spatial
        found.append((halved, out.file_format == "jpeg"))
    return found


def test_all_four_forms_are_drawn_about_equally_often() -> None:
    found = kinds([image(smooth(64, 70), str(n)) for n in range(400)], seed=0)
    for kind in ((False, False), (False, True), (True, False), (True, True)):
        assert 70 <= found.count(kind) <= 130


def test_the_form_depends_on_content_and_seed_alone() -> None:
    images = [image(smooth(64, 70), str(n)) for n in range(40)]
    assert kinds(images, 0) == kinds(images[::-1], 0)[::-1]
    assert kinds(images, 0) != kinds(images, 1)
    renamed = [dataclasses.replace(i, item="other") for i in images]
    assert kinds(renamed, 0) == kinds(images, 0)
    without = [dataclasses.replace(i, digest="") for i in images]
    assert len(set(kinds(without, 0))) == 1


def test_small_images_are_not_halved() -> None:
    assert not any(halved for halved, _ in kinds([image(smooth(63, 80), str(n)) for n in range(30)], seed=0))


@pytest.mark.parametrize("pixels", [smooth(80, 80).astype(np.uint16) * 16, (smooth(80, 80) / 255).astype(np.float32)])
def test_more_than_eight_bits_are_never_jpeg_and_keep_their_kind(pixels: np.ndarray) -> None:
    for n in range(20):
        out = random_form(image(pixels, str(n), bits=12), seed=0)
        assert out.pixels.dtype == pixels.dtype
        assert out.file_format == "png"
        assert pixels.min() <= out.pixels.min()
        assert out.pixels.max() <= pixels.max()
        assert out.spatial in ((80, 80), (40, 40))


@pytest.mark.parametrize(("height", "width"), [(80, 100), (81, 99)])
@pytest.mark.parametrize("channels", [1, 3])
def test_half_keeps_the_field_of_view(height: int, width: int, channels: int) -> None:
    before = dataclasses.replace(image(smooth(height, width, channels)), mask=np.ones((height, width), bool))
    out = half(before)
    assert out.spatial == ((height + 1) // 2, (width + 1) // 2)
    assert out.frame == before.frame
    assert out.spacing is not None
    assert np.allclose(np.multiply(out.spacing, out.spatial), np.multiply((0.5, 0.5), (height, width)))
    assert out.mask is not None
    assert out.mask.shape == out.spatial
    assert np.abs(out.pixels.mean(axis=(1, 2)) - before.pixels.mean(axis=(1, 2))).max() < 0.5


def test_jpeg_is_the_files_own_round_trip() -> None:
    pixels = smooth(70, 90, 3)
    file = io.BytesIO()
    Pillow.fromarray(pixels.transpose(1, 2, 0)).save(file, "JPEG", quality=88, subsampling=2)
    assert np.array_equal(jpeg(image(pixels), quality=88).pixels, np.asarray(Pillow.open(file)).transpose(2, 0, 1))


def test_eight_bits_kept_as_floats_are_recognised() -> None:
    pixels = smooth(70, 90)
    as_float = jpeg(image(pixels.astype(np.float32)), quality=85)
    assert as_float.pixels.dtype == np.float32
    assert np.array_equal(as_float.pixels, jpeg(image(pixels), quality=85).pixels)


def test_volumes_are_halved_in_their_planes() -> None:
    volume = image(np.random.default_rng(0).integers(0, 900, (1, 5, 70, 80), dtype=np.int16))
    volume = dataclasses.replace(volume, spacing=(3.0, 1.0, 1.0))
    out = half(volume)
    assert out.pixels.shape == (1, 5, 35, 40)
    assert out.spacing == (3.0, 2.0, 2.0)
    assert jpeg(volume, quality=90) is volume


def test_named_forms_differ_by_little_and_by_rank() -> None:
    before = image(smooth(96, 96, 3))
    out = {name: form(before) for name, form in FORMS.items()}
    assert np.array_equal(out["native"].pixels, before.pixels)
    assert np.array_equal(out["png"].pixels, before.pixels)
    loss = {name: np.abs(out[name].pixels.astype(int) - before.pixels).mean() for name in ("jpeg85", "jpeg95")}
    assert 0 < loss["jpeg95"] < loss["jpeg85"] < 3
    assert out["half_jpeg90"].spatial == out["half"].spatial == (48, 48)
    assert not np.array_equal(out["half_jpeg90"].pixels, out["half"].pixels)
