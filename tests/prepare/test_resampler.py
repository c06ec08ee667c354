"""The one resampler: what every reduction and enlargement must keep."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from offmap.prepare.resampler import resample, resample_mask

sizes = st.integers(3, 40)


def triangle_matrix(old: int, new: int) -> np.ndarray:
    """Weights of the antialiased triangle filter, written from its definition in float64."""
    ratio = old / new
    reach = max(ratio, 1.0)
    centres = (np.arange(new)[:, None] + 0.5) * ratio
    weights = np.maximum(0.0, 1.0 - np.abs(np.arange(old)[None] + 0.5 - centres) / reach)
    return weights / weights.sum(axis=1, keepdims=True)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(h=sizes, w=sizes, p=sizes, q=sizes, channels=st.sampled_from([1, 3]), seed=st.integers(0, 99))
def test_is_the_separable_triangle_filter(h: int, w: int, p: int, q: int, channels: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).random((channels, h, w), dtype=np.float32)
    expected = triangle_matrix(h, p) @ pixels.astype(np.float64) @ triangle_matrix(w, q).T
    assert np.allclose(resample(pixels, (p, q)), expected, atol=2e-6)


def test_volumes_are_filtered_along_the_slices_too() -> None:
    pixels = np.random.default_rng(0).random((3, 9, 14, 11), dtype=np.float32)
    expected = np.einsum("dz,py,qx,czyx->cdpq", triangle_matrix(9, 4), triangle_matrix(14, 20), triangle_matrix(11, 5), pixels)
    assert np.allclose(resample(pixels, (4, 20, 5)), expected, atol=2e-6)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(h=sizes, w=sizes, p=sizes, q=sizes, value=st.floats(-1000, 3000, width=32))
def test_a_constant_stays_constant(h: int, w: int, p: int, q: int, value: float) -> None:
    out = resample(np.full((1, h, w), value, dtype=np.float32), (p, q))
    assert np.allclose(out, value, rtol=1e-6)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(h=sizes, w=sizes, p=sizes, q=sizes, seed=st.integers(0, 99))
def test_values_stay_in_range_and_mirror_images_mirror(h: int, w: int, p: int, q: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).random((1, h, w), dtype=np.float32)
    out = resample(pixels, (p, q))
    assert out.min() >= pixels.min() - 1e-6
    assert out.max() <= pixels.max() + 1e-6
    assert np.allclose(resample(pixels[..., ::-1], (p, q)), out[..., ::-1], atol=1e-6)
    assert (resample(pixels + 0.25, (p, q)) >= out + 0.25 - 1e-5).all()


@pytest.mark.parametrize("factor", [2, 4, 5])
def test_the_mean_is_kept_when_reducing(factor: int) -> None:
    pixels = np.pad(np.random.default_rng(1).random((1, 60, 60), dtype=np.float32), ((0, 0), (20, 20), (20, 20)))
    assert resample(pixels, (100 // factor, 100 // factor)).mean() == pytest.approx(pixels.mean(), rel=1e-4)


def test_a_shift_by_whole_new_pixels_shifts_the_result() -> None:
    pixels = np.pad(np.random.default_rng(2).random((1, 40, 40), dtype=np.float32), ((0, 0), (30, 30), (30, 30)))
    moved = np.roll(pixels, (8, -4), axis=(1, 2))
    assert np.allclose(resample(moved, (25, 25)), np.roll(resample(pixels, (25, 25)), (2, -1), axis=(1, 2)), atol=1e-6)


def test_by_way_of_the_half_is_near_the_direct_way() -> None:
    y, x = np.mgrid[:256, :256] / 256
    pixels = (0.5 + 0.2 * np.sin(9 * x + 4 * y) + 0.2 * np.cos(14 * y * x))[None].astype(np.float32)
    half = resample(pixels, (128, 128))
    assert np.abs(resample(half, (64, 64)) - resample(pixels, (64, 64)))[:, 2:-2, 2:-2].max() < 0.5 / 255


def test_reducing_does_not_alias() -> None:
    checkers = (np.indices((120, 120)).sum(axis=0) % 2)[None].astype(np.float32)
    assert np.abs(resample(checkers, (37, 37)) - 0.5).max() < 0.03


def test_eight_bit_resampling_of_pillow_is_not_good_enough() -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (96, 96), dtype=np.uint8)
    ours = resample(pixels[None].astype(np.float32), (60, 60))[0]
    eight = np.asarray(Pillow.fromarray(pixels).resize((60, 60), Pillow.Resampling.BILINEAR), dtype=np.float32)
    assert 0.5 < np.abs(ours - eight).max() < 1.5


@settings(max_examples=25, deadline=None, derandomize=True)
@given(h=sizes, w=sizes, p=sizes, q=sizes, seed=st.integers(0, 99))
def test_masks_take_the_nearest_pixel(h: int, w: int, p: int, q: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((h, w)) > 0.5
    out = resample_mask(mask, (p, q))
    for i, j in ((0, 0), (p - 1, q - 1), (p // 2, q // 3)):
        assert out[i, j] == mask[int((i + 0.5) * h / p), int((j + 0.5) * w / q)]
