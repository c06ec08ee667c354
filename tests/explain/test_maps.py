"""Heat maps: back at the right place of the image as read, NaN where nothing was scored."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from scipy import ndimage

from offmap.core.errors import ConfigError
from offmap.core.types import Frame, Image
from offmap.explain.maps import DIM, INFERNO, display, overlay, peak_slice, save_png, to_image
from offmap.prepare.crop import Crop
from offmap.prepare.mask import Mask
from offmap.prepare.preparation import Preparation
from offmap.prepare.resample import Resample
from offmap.prepare.resize import Resize

sides = st.integers(40, 150)


def spot(height: int, width: int, y: float, x: float) -> Image:
    """A bright Gaussian spot centred at (y, x), in pixels from the first edge, on a weak ramp."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    pixels = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * (0.06 * min(height, width)) ** 2)) + 0.01 * rows / height
    return Image(pixels[None].astype(np.float32), "made", Frame.whole((height, width)), spacing=(0.7, 0.9))


def cells(prepared: np.ndarray, grid: int) -> np.ndarray:
    """What a localiser would give: the mean of each cell of a coarse grid."""
    side = prepared.shape[-1] // grid
    return prepared[0].reshape(grid, side, grid, side).mean(axis=(1, 3))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    h=sides,
    w=sides,
    mode=st.sampled_from(["crop", "pad"]),
    u=st.floats(0.25, 0.75),
    v=st.floats(0.25, 0.75),
    mm=st.sampled_from([0.5, 0.8]),
)
def test_a_hot_spot_comes_back_where_it_was(h: int, w: int, mode: str, u: float, v: float, mm: float) -> None:
    side = min(h, w)
    y, x = h / 2 + (u - 0.5) * side, w / 2 + (v - 0.5) * side
    steps = Preparation((Resample(mm=mm), Crop(mode=mode), Resize(size=160)))  # type: ignore[arg-type]
    prepared = steps.apply(spot(h, w, y, x))
    heat = to_image(cells(prepared.pixels, 20), prepared.frame)
    assert heat.shape == (h, w)
    found = ndimage.center_of_mass(np.nan_to_num(np.where(heat > 0.5 * np.nanmax(heat), heat, 0)))
    cell = [(high - low) / 20 for low, high in zip(prepared.frame.low, prepared.frame.high, strict=True)]
    assert abs(found[0] + 0.5 - y) < 0.5 * cell[0]
    assert abs(found[1] + 0.5 - x) < 0.5 * cell[1]


@pytest.mark.parametrize(("h", "w"), [(50, 90), (90, 51), (51, 90), (64, 64)])
def test_nan_exactly_where_cropped(h: int, w: int) -> None:
    prepared = Preparation((Crop(), Resize(size=160))).apply(spot(h, w, h / 2, w / 2))
    heat = to_image(np.ones((5, 5)), prepared.frame)
    side = min(h, w)
    expected = np.full((h, w), np.nan)
    top, left = (h - side) // 2, (w - side) // 2
    expected[top : top + side, left : left + side] = 1
    assert np.array_equal(heat, expected, equal_nan=True)


@pytest.mark.parametrize(("h", "w"), [(50, 90), (91, 50)])
def test_nothing_is_nan_when_padded(h: int, w: int) -> None:
    prepared = Preparation((Crop(mode="pad"), Resize(size=160))).apply(spot(h, w, h / 2, w / 2))
    assert not np.isnan(to_image(np.ones((7, 3)), prepared.frame)).any()


def test_nan_outside_the_mask() -> None:
    h, w = 100, 140
    rows, columns = np.mgrid[:h, :w] + 0.5
    disc = np.hypot(rows - 50, columns - 70) < 30
    image = Image((disc * 0.8)[None].astype(np.float32), "made", Frame.whole((h, w)))
    prepared = Preparation((Mask(), Crop(), Resize(size=80))).apply(image)
    heat = to_image(np.ones((10, 10)), prepared.frame, mask=prepared.mask)
    assert (np.isfinite(heat) == disc).mean() > 0.98
    assert np.isnan(heat[:, :20]).all()
    full = to_image(np.ones((10, 10)), Frame.whole((h, w)), mask=disc)
    assert np.array_equal(np.isfinite(full), disc)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(h=st.integers(1, 30), w=st.integers(1, 30), p=st.integers(1, 12), q=st.integers(1, 12), seed=st.integers(0, 99))
def test_interpolation_is_linear_between_the_centres_of_cells(h: int, w: int, p: int, q: int, seed: int) -> None:
    grid = np.random.default_rng(seed).random((p, q))
    heat = to_image(grid, Frame.whole((h, w)))
    y, x = np.meshgrid((np.arange(h) + 0.5) * p / h - 0.5, (np.arange(w) + 0.5) * q / w - 0.5, indexing="ij")
    assert np.allclose(heat, ndimage.map_coordinates(grid, [y, x], order=1, mode="nearest"), atol=1e-5)


def test_volumes_are_interpolated_in_all_directions() -> None:
    grid = np.random.default_rng(0).random((3, 4, 5))
    frame = Frame((9, 20, 30), (0.0, 0.0, 5.0), (9.0, 20.0, 25.0))
    heat = to_image(grid, frame)
    place = np.meshgrid((np.arange(9) + 0.5) / 3 - 0.5, (np.arange(20) + 0.5) / 5 - 0.5, (np.arange(20) + 0.5) / 4 - 0.5, indexing="ij")
    assert np.allclose(heat[..., 5:25], ndimage.map_coordinates(grid, place, order=1, mode="nearest"), atol=1e-5)
    assert np.isnan(heat[..., :5]).all()
    assert np.isnan(heat[..., 25:]).all()


def test_axes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"map of shape \(3, 4\)"):
        to_image(np.ones((3, 4)), Frame.whole((5, 6, 7)))
    with pytest.raises(ConfigError, match="mask"):
        to_image(np.ones((3, 4)), Frame.whole((5, 6)), mask=np.ones((2, 3, 4), bool))


def test_the_slice_with_the_maximum_is_shown() -> None:
    volume = np.zeros((7, 5, 6), np.float32)
    volume[4, 2, 3] = 3
    volume[5] = np.nan
    assert peak_slice(volume) == 4
    assert peak_slice(np.full((7, 2, 2), np.nan)) == 3
    pixels = np.broadcast_to(np.arange(7, dtype=np.uint8)[None, :, None, None] * 20, (1, 7, 5, 6)).copy()
    shown = display(Image(pixels, "made", Frame.whole((7, 5, 6))), index=4)
    painted = overlay(shown, volume[4], low=2.0, high=3.0)
    assert painted.shape == (5, 6, 3)
    assert painted[0, 0].tolist() == [80, 80, 80]
    assert painted[2, 3, 0] > 150


@pytest.mark.parametrize("colour", [False, True])
def test_overlay_shows_strength_and_dims_what_was_not_scored(colour: bool) -> None:
    picture = np.full((4, 6, 3) if colour else (4, 6), 100, np.uint8)
    heat = np.tile(np.array([np.nan, -5.0, 0.0, 0.5, 1.0, 9.0]), (4, 1))
    painted = overlay(picture, heat, low=0.0, high=1.0)
    assert painted.shape == (4, 6, 3)
    assert painted[0, 0].tolist() == [round(100 * DIM)] * 3
    assert painted[0, 1].tolist() == painted[0, 2].tolist() == [100, 100, 100]
    assert painted[0, 4].tolist() == painted[0, 5].tolist() == np.rint(0.2 * 100 + 0.8 * INFERNO[-1]).tolist()
    assert painted[0, 3].tolist() == np.rint(0.6 * 100 + 0.4 * INFERNO[8]).tolist()


def test_the_colours_grow_brighter_evenly() -> None:
    linear = np.where(INFERNO / 255 <= 0.04045, INFERNO / 255 / 12.92, ((INFERNO / 255 + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    lightness = np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)
    steps = np.diff(lightness)
    assert (steps > 1.5).all()
    assert (steps < 1.5 * np.median(steps)).all()


def test_a_map_of_another_size_covers_the_picture() -> None:
    heat = np.zeros((200, 300))
    heat[150:, 200:] = 1
    painted = overlay(np.zeros((20, 30), np.uint8), heat, low=0.0, high=1.0)
    assert (painted[15:, 20:, 0] > 0).all()
    assert (painted[:15] == 0).all()
    assert (painted[:, :20] == 0).all()


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (0.0, float("nan")), (float("-inf"), 0.0)])
def test_limits_that_cannot_be_drawn_are_refused(low: float, high: float) -> None:
    with pytest.raises(ConfigError, match="limits"):
        overlay(np.zeros((3, 3), np.uint8), np.zeros((3, 3)), low=low, high=high)


def test_display_shows_each_kind_of_number() -> None:
    eight = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    frame = Frame.whole((16, 16))
    assert np.array_equal(display(Image(eight, "made", frame)), eight[0])
    assert np.array_equal(display(Image(eight.astype(np.float32), "made", frame, bits=8)), eight[0])
    assert np.array_equal(display(Image((eight / 255).astype(np.float32), "made", frame)), eight[0])
    assert display(Image(eight >> 4, "made", frame, bits=4)).max() == 255
    hu = np.linspace(-1000, 1000, 256, dtype=np.float32).reshape(1, 16, 16)
    windowed = display(Image(hu, "made", frame, bits=12, window=(40.0, 400.0), modality="CT"))
    assert np.allclose(windowed, np.clip((hu[0] + 160) / 400, 0, 1) * 255, atol=0.51)
    mr = (eight.astype(np.uint16) * 11) + 40
    shown = display(Image(mr, "made", frame, bits=12, modality="MR"))
    assert (shown.min(), shown.max()) == (0, 255)
    assert np.abs(shown.astype(int) - eight[0]).max() <= 3


@pytest.mark.parametrize(("shape", "expected"), [((1, 900, 600), (256, 171)), ((3, 100, 300), (85, 256, 3)), ((1, 40, 50), (40, 50))])
def test_display_reduces_large_pictures_only(shape: tuple[int, int, int], expected: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert display(Image(pixels, "made", Frame.whole(shape[1:])), side=256).shape == expected


def test_display_of_an_image_without_contrast_is_still_a_picture() -> None:
    assert display(Image(np.full((1, 5, 5), 700, np.int16), "made", Frame.whole((5, 5)), bits=16)).shape == (5, 5)


def test_png_comes_back(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    save_png(tmp_path / "a map ü.png", picture)
    with Pillow.open(tmp_path / "a map ü.png") as read:
        assert np.array_equal(np.asarray(read), picture)
    assert [p.name for p in tmp_path.iterdir()] == ["a map ü.png"]


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="space"):
        save_png(tmp_path / "a.png", np.zeros((4, 4), dtype=np.uint8))
    assert list(tmp_path.iterdir()) == []
