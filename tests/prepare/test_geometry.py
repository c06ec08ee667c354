"""Crop, pad, resize, resample: pixels, frame, spacing and mask stay together."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offmap.core.errors import ConfigError, ReadError
from offmap.core.types import Frame, Image
from offmap.prepare.crop import Crop
from offmap.prepare.preparation import Preparation
from offmap.prepare.resample import Resample
from offmap.prepare.resize import Resize

sides = st.integers(40, 90)


def coordinates(height: int, width: int) -> Image:
    """An image whose channels are the row, the column and one of pixel centres, in pixels."""
    y, x = np.mgrid[:height, :width].astype(np.float32) + 0.5
    return Image(np.stack([y, x, y]), "made", Frame.whole((height, width)), spacing=(0.5, 0.8))


def centres(frame: Frame, axis: int, count: int) -> np.ndarray:
    """Where the frame says the centres of a grid's pixels lie on the image as read."""
    return frame.low[axis] + (np.arange(count) + 0.5) * (frame.high[axis] - frame.low[axis]) / count


@settings(max_examples=40, deadline=None, derandomize=True)
@given(h=sides, w=sides, size=st.integers(24, 70), mode=st.sampled_from(["crop", "pad"]), mm=st.floats(0.4, 1.5))
def test_the_frame_says_where_every_pixel_comes_from(h: int, w: int, size: int, mode: str, mm: float) -> None:
    steps = Preparation((Resample(mm=mm), Crop(mode=mode, fill=-1000.0), Resize(size=size, smallest=1)))  # type: ignore[arg-type]
    out = steps.apply(coordinates(h, w))
    for axis, n in enumerate((h, w)):
        low, high = out.frame.low[axis], out.frame.high[axis]
        places = centres(out.frame, axis, size)
        margin = 5 * max(1.0, (high - low) / size, mm / 0.5)
        deep = (places > max(low, 0) + margin) & (places < min(high, n) - margin)
        middle = np.abs(np.arange(size) + 0.5 - size / 2) < 1
        seen = np.moveaxis(out.pixels[axis], axis, 0)[np.ix_(deep, middle)]
        assert np.allclose(seen, places[deep][:, None], atol=0.05 * margin)


@pytest.mark.parametrize(("h", "w"), [(10, 17), (17, 10), (11, 24), (9, 9)])
def test_crop_takes_the_middle(h: int, w: int) -> None:
    out = Crop()(coordinates(h, w))
    side = min(h, w)
    assert out.spatial == (side, side)
    assert out.pixels[1, 0, 0] == (w - side) // 2 + 0.5
    assert out.pixels[0, 0, 0] == (h - side) // 2 + 0.5
    assert out.frame.low == ((h - side) // 2, (w - side) // 2)
    assert out.frame.high == ((h - side) // 2 + side, (w - side) // 2 + side)
    assert out.frame.share == pytest.approx(side**2 / (h * w))


@pytest.mark.parametrize(("h", "w"), [(10, 17), (17, 10), (11, 24)])
def test_pad_keeps_everything(h: int, w: int) -> None:
    image = dataclasses.replace(coordinates(h, w), mask=np.ones((h, w), bool))
    out = Crop(mode="pad", fill=-7.0)(image)
    side = max(h, w)
    assert out.spatial == (side, side)
    assert out.frame.share == 1.0
    assert (out.pixels[0] == -7).sum() == side**2 - h * w
    assert out.mask is not None
    assert np.array_equal(out.mask, out.pixels[0] != -7)
    assert sorted(set(out.pixels[1].ravel()) - {-7.0}) == [i + 0.5 for i in range(w)]


def test_spacing_follows_resizing_but_not_cropping() -> None:
    out = Crop()(coordinates(40, 60))
    assert out.spacing == (0.5, 0.8)
    out = Resize(size=20)(out)
    assert out.spacing == (1.0, 1.6)


def test_resampling_reaches_the_target_spacing_over_the_same_field() -> None:
    out = Resample(mm=1.0)(coordinates(41, 60))
    assert out.spatial == (20, 48)
    assert out.spacing is not None
    assert np.allclose(np.array(out.spacing) * out.spatial, [41 * 0.5, 60 * 0.8])
    assert out.frame == Frame.whole((41, 60))


def test_volumes_keep_their_slices_unless_told() -> None:
    pixels = np.random.default_rng(0).random((1, 12, 40, 30), dtype=np.float32)
    volume = Image(pixels, "made", Frame.whole((12, 40, 30)), spacing=(3.0, 1.0, 1.0), mask=pixels[0] > 0.5)
    out = Preparation((Resample(mm=1.0), Crop(), Resize(size=20))).apply(volume)
    assert out.spatial == (12, 20, 20)
    assert out.frame.low == (0.0, 5.0, 0.0)
    assert out.spacing == (3.0, 1.5, 1.5)
    assert out.mask is not None
    assert out.mask.shape == (12, 20, 20)
    assert Resample(mm=2.0, between=1.0)(volume).spatial == (36, 20, 15)
    assert Resize(size=16, depth=5)(volume).spatial == (5, 16, 16)


@pytest.mark.parametrize("spacing", [None, (0.0, 1.0), (-1.0, 1.0), (float("nan"), 1.0), (1.0, 1.0, 1.0)])
def test_missing_or_impossible_spacing_is_refused(spacing: tuple[float, ...] | None) -> None:
    image = dataclasses.replace(coordinates(20, 20), spacing=spacing)
    with pytest.raises(ReadError) as error:
        Resample()(image)
    assert error.value.reason == "bad_geometry"


def test_missing_spacing_may_be_kept_on_demand() -> None:
    image = dataclasses.replace(coordinates(20, 20), spacing=None)
    assert Resample(missing="keep")(image) is image


def test_a_spacing_that_would_blow_up_is_refused() -> None:
    image = dataclasses.replace(coordinates(20, 20), spacing=(1e4, 1e4))
    with pytest.raises(ReadError) as error:
        Resample(mm=0.1)(image)
    assert error.value.reason == "bomb"


@pytest.mark.parametrize(
    "wrong", [lambda: Resample(mm=0.0), lambda: Resample(between=-1.0), lambda: Resize(size=0), lambda: Crop(fill=float("inf"))]
)
def test_impossible_parameters_are_refused(wrong: object) -> None:
    with pytest.raises(ConfigError):
        wrong()  # type: ignore[operator]
