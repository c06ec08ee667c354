"""Pasted pieces: exact masks, and each kind's own equation."""

import numpy as np
import pytest
from scipy import ndimage

from offmap.core.errors import ConfigError
from offmap.simulate.anomalies import ANOMALIES, cut_paste, interpolate, poisson


def pair(channels: int = 1, size: tuple[int, ...] = (60, 80)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    own, other = (ndimage.gaussian_filter(rng.random((channels, *size)), (0, *[2] * len(size))).astype(np.float32) for _ in range(2))
    return own, np.clip(other * 0.5 + 0.3, 0, 1).astype(np.float32)


@pytest.mark.parametrize("name", list(ANOMALIES))
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(60, 80), (20, 9, 26)])
def test_masks_are_exact_and_seeds_repeat(name: str, channels: int, size: tuple[int, ...]) -> None:
    own, other = pair(channels, size)
    for seed in range(10):
        planted, again = (ANOMALIES[name](own, other, rng=np.random.default_rng(seed)) for _ in range(2))
        changed = (planted.pixels != own).any(axis=0)
        assert np.array_equal(planted.pixels, again.pixels)
        assert not changed[~planted.mask].any()
        assert changed[planted.mask].mean() > 0.98
        assert planted.mask.sum() == planted.drawn.get("depth", 1) * planted.drawn["height"] * planted.drawn["width"]
        assert planted.mask[(slice(1, -1),) * len(size)].sum() == planted.mask.sum()


def test_cut_paste_shows_a_piece_of_the_other_image() -> None:
    own, other = pair()
    planted = cut_paste(own, other, rng=np.random.default_rng(1))
    top, left, height, width = (int(planted.drawn[k]) for k in ("top", "left", "height", "width"))
    piece = planted.pixels[0, top : top + height, left : left + width]
    windows = np.lib.stride_tricks.sliding_window_view(other[0], piece.shape)
    assert (windows == piece).all(axis=(2, 3)).sum() == 1


def test_a_piece_of_the_same_image_works() -> None:
    own, _ = pair()
    assert (cut_paste(own, own, rng=np.random.default_rng(1)).pixels != own).any()


def test_interpolation_mixes_by_the_factor() -> None:
    own = np.full((1, 40, 40), 0.2, np.float32)
    planted = interpolate(own, np.full_like(own, 0.8), rng=np.random.default_rng(0))
    assert np.allclose(planted.pixels[0, planted.mask], 0.2 + 0.6 * planted.drawn["factor"])
    assert 0.3 <= planted.drawn["factor"] <= 0.9


def test_poisson_solves_its_equation() -> None:
    own, other = pair()
    own, other = 0.4 + 0.2 * own, 0.4 + 0.2 * other
    planted = poisson(own, other, rng=np.random.default_rng(2))
    inside = ndimage.binary_erosion(planted.mask)
    result = planted.pixels[0].astype(np.float64)
    found = {
        (dy, dx)
        for dy in range(-60, 61)
        for dx in range(-80, 81)
        if np.abs((ndimage.laplace(result) - np.roll(ndimage.laplace(other[0].astype(np.float64)), (dy, dx), (0, 1)))[inside]).max() < 1e-5
    }
    assert len(found) >= 1
    dy, dx = min(found)
    border = ndimage.binary_dilation(planted.mask) & ~planted.mask
    jump = (result - np.roll(other[0], (dy, dx), (0, 1)))[planted.mask | border]
    edge = (own[0] - np.roll(other[0], (dy, dx), (0, 1)))[border]
    assert edge.min() - 1e-5 <= jump.min()
    assert jump.max() <= edge.max() + 1e-5


def test_impossible_requests_are_refused() -> None:
    own, other = pair()
    with pytest.raises(ConfigError, match="shape"):
        cut_paste(own, other[:, :-1], rng=np.random.default_rng(0))
    with pytest.raises(ConfigError, match="size"):
        poisson(own, other, rng=np.random.default_rng(0), size=(0.1, 0.9))
