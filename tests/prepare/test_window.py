"""Numbers to [0, 1], by what they mean."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offmap.core.errors import ConfigError, ReadError
from offmap.core.types import Frame, Image
from offmap.prepare.percentile import Percentile
from offmap.prepare.window import Window

RNG = np.random.default_rng(0)
EIGHT = RNG.integers(0, 256, (1, 20, 30), dtype=np.uint8)


def image(pixels: np.ndarray, file_format: str, bits: int = 16, modality: str = "", window: tuple[float, float] | None = None) -> Image:
    return Image(pixels, "made", Frame.whole(pixels.shape[1:]), file_format=file_format, bits=bits, modality=modality, window=window)


def values(step: Window | Percentile, given_image: Image) -> np.ndarray:
    pixels = step(given_image).pixels
    assert pixels.dtype == np.float32
    assert 0 <= pixels.min() < pixels.max() <= 1
    return pixels


@pytest.mark.parametrize(
    "same",
    [
        image(EIGHT, "jpeg", 8),
        image(EIGHT, "dicom", 8, "US"),
        image(EIGHT.astype(np.float32), "dicom", 8, "US"),
        image(EIGHT.astype(np.uint16), "png"),
        image(EIGHT.astype(np.uint16) * 257, "png"),
        image(EIGHT.astype(np.float32) * 257, "tiff", 32),
        image(EIGHT.astype(np.float32), "array"),
        image((EIGHT / 255).astype(np.float32), "array", 8),
        image((EIGHT / 255).astype(np.float64), "npz", 64),
    ],
    ids=lambda i: f"{i.file_format}-{i.pixels.dtype}-{i.pixels.max():.0f}",
)
def test_one_picture_in_any_container_gives_the_same_numbers(same: Image) -> None:
    assert np.allclose(values(Window(), same), EIGHT / 255, atol=1e-6)


def test_a_dark_eight_bit_picture_stays_dark() -> None:
    dark = (EIGHT // 10).astype(np.uint8)
    assert values(Window(), image(dark, "png", 8)).max() == pytest.approx(25 / 255)


@pytest.mark.parametrize("bits", [1, 4, 7])
def test_fewer_bits_have_their_own_white(bits: int) -> None:
    few = EIGHT >> (8 - bits)
    assert np.allclose(values(Window(), image(few, "png", bits)), few / (2**bits - 1))


def test_ct_is_windowed_in_hounsfield_units() -> None:
    hu = np.array([[[-2000.0, -1000.0, 0.0, 40.0, 80.0, 1000.0, 3000.0]]], dtype=np.float32)
    ct = image(hu, "dicom", 12, "CT")
    assert np.allclose(values(Window(), ct), [0, 0, 0.5, 0.52, 0.54, 1, 1])
    assert np.allclose(values(Window(ct="brain"), ct), [0, 0, 0, 0.5, 1, 1, 1])
    assert np.allclose(values(Window(centre=0.0, width=4000.0), ct), [0, 0.25, 0.5, 0.51, 0.52, 0.75, 1])


def test_the_window_of_the_file_is_used_on_demand_and_auto_where_there_is_none() -> None:
    hu = np.linspace(-100, 300, 50, dtype=np.float32).reshape(1, 5, 10)
    stored = image(hu, "dicom", 12, "CT", window=(100.0, 200.0))
    assert np.allclose(values(Window(mode="file"), stored), np.clip(hu / 200, 0, 1), atol=1e-6)
    without = dataclasses.replace(stored, window=None)
    assert np.array_equal(values(Window(mode="file"), without), values(Window(), without))


def test_a_fixed_window_takes_every_file() -> None:
    hu = np.linspace(-500, 500, 50, dtype=np.float32).reshape(1, 5, 10)
    assert np.allclose(values(Window(mode="fixed", ct="soft"), image(hu, "nifti")), np.clip((hu + 160) / 400, 0, 1), atol=1e-6)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(gain=st.floats(0.5, 50), offset=st.floats(-500, 500), pad=st.integers(0, 30))
def test_percentiles_ignore_gain_offset_and_black_padding(gain: float, offset: float, pad: int) -> None:
    raw = np.random.default_rng(1).gamma(4.0, 50.0, (1, 30, 30)).astype(np.float32)
    raw[0, 0, 0] = 0
    plain = values(Window(), image(raw, "dicom", 12, "MR"))
    scaled = np.pad(raw * gain + offset, ((0, 0), (pad, pad), (0, 0)), constant_values=offset).astype(np.float32)
    assert np.allclose(values(Window(), image(scaled, "dicom", 12, "MR"))[:, pad : pad + 30], plain, atol=2e-3)


def test_percentiles_are_those_of_the_foreground() -> None:
    raw = np.arange(1001, dtype=np.uint16).reshape(1, 7, 143)
    low, high = np.percentile(np.arange(1, 1001), [0.5, 99.5])
    assert np.allclose(values(Percentile(), image(raw, "dicom", 12, "MR")), np.clip((raw - low) / (high - low), 0, 1), atol=1e-6)


def test_black_and_white_drawings_keep_both_values() -> None:
    drawing = np.zeros((1, 8, 8), dtype=np.int16)
    drawing[0, 2:5, 2:5] = 900
    assert np.array_equal(values(Percentile(), image(drawing, "nifti")), drawing / 900)


def test_large_integers_keep_their_differences() -> None:
    raw = (2**31 - 1 - np.arange(100, dtype=np.int64)).astype(np.int32).reshape(1, 10, 10)
    assert len(np.unique(values(Percentile(low=0.0, high=100.0), image(raw, "nifti", 32)))) >= 99


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.full((1, 4, 4), 7, np.uint8), "constant"),
        (np.full((1, 4, 4), 7, np.int16), "constant"),
        (np.array([[[1.0, np.nan]]], np.float32), "non_finite"),
        (np.array([[[1.0, np.inf]]], np.float32), "non_finite"),
    ],
)
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_what_cannot_be_windowed_is_refused(pixels: np.ndarray, reason: str, modality: str) -> None:
    with pytest.raises(ReadError) as error:
        Window()(image(pixels, "dicom", 16, modality))
    assert error.value.reason == reason


def test_a_ct_without_contrast_in_the_window_is_refused() -> None:
    air = np.linspace(-1000, -900, 16, dtype=np.float32).reshape(1, 4, 4)
    with pytest.raises(ReadError, match="brain window"):
        Window(ct="brain")(image(air, "dicom", 12, "CT"))


@pytest.mark.parametrize("wrong", [{"centre": 1.0}, {"centre": 1.0, "width": 0.0}, {"low": 50.0, "high": 40.0}])
def test_impossible_parameters_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Window(**wrong)  # type: ignore[arg-type]
    if "low" in wrong:
        with pytest.raises(ConfigError):
            Percentile(**wrong)
