"""The foreground of a body on a dark ground."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offmap.core.errors import ConfigError, ReadError
from offmap.core.types import Frame, Image
from offmap.prepare.mask import Mask, largest_filled, otsu


def body(seed: int = 0) -> tuple[Image, np.ndarray]:
    """A bright disc with a dark hole, a small bright label beside it, and noise; and the filled disc."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:80, :100]
    disc = np.hypot(y - 38, x - 45) < 30
    pixels = np.where(disc & ~(np.hypot(y - 40, x - 50) < 8), 0.7, 0.05) + 0.02 * rng.standard_normal(disc.shape)
    pixels[2:8, 85:98] = 0.9
    return Image(np.clip(pixels, 0, 1)[None].astype(np.float32), "made", Frame.whole((80, 100))), disc


@pytest.mark.parametrize("channels", [1, 3])
def test_the_body_is_found_with_its_holes_and_without_the_label(channels: int) -> None:
    image, disc = body()
    image = dataclasses.replace(image, pixels=np.repeat(image.pixels, channels, axis=0))
    out = Mask()(image)
    assert out.mask is not None
    assert np.array_equal(out.mask, disc)
    assert (out.pixels[:, ~disc] == 0).all()
    assert np.array_equal(out.pixels[:, disc], image.pixels[:, disc])
    assert image.mask is None


def test_an_earlier_mask_is_kept_within() -> None:
    image, disc = body()
    left = np.broadcast_to(np.arange(100) < 45, disc.shape)
    out = Mask()(dataclasses.replace(image, mask=left.copy()))
    assert np.array_equal(out.mask, disc & left)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999), share=st.floats(0.1, 0.9), gap=st.floats(0.2, 5))
def test_otsu_is_the_best_split_of_the_histogram(seed: int, share: float, gap: float) -> None:
    rng = np.random.default_rng(seed)
    values = np.where(rng.random(600) < share, rng.normal(0, 0.3, 600), rng.normal(gap, 0.3, 600))

    def within(threshold: float) -> float:
        parts = [values[values <= threshold], values[values > threshold]]
        return float(sum(part.size * part.var() for part in parts if part.size))

    best = min(within(t) for t in np.linspace(values.min(), values.max(), 257)[1:-1])
    assert within(otsu(values)) <= best * 1.01 + 1e-9


def test_volumes_are_filled_slice_by_slice() -> None:
    mask = np.zeros((3, 9, 9), bool)
    mask[:, 2:7, 2:7] = True
    mask[1, 4, 4] = False
    mask[0, 8, 8] = True
    found = largest_filled(mask)
    assert found[1, 4, 4]
    assert not found[0, 8, 8]
    assert found.sum() == 75


def test_no_foreground_is_refused() -> None:
    pixels = np.zeros((1, 60, 60), np.float32)
    pixels[0, 3, 3] = 1
    with pytest.raises(ReadError) as error:
        Mask()(Image(pixels, "made", Frame.whole((60, 60))))
    assert error.value.reason == "constant"
    with pytest.raises(ConfigError):
        Mask(smallest=1.0)
