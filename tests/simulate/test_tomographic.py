"""Stars, streaks and missing wedges: exact masks, recorded numbers, and what physics says."""

import numpy as np
import pytest

from offmap.core.errors import ConfigError
from offmap.simulate.phantoms import draw
from offmap.simulate.tomographic import ARTEFACTS, LEAST, StarRanges, missing_wedge, star, streaks

FLAT = np.full((1, 96, 110), 0.4, np.float32)


def brain(size: int = 96) -> np.ndarray:
    return draw("brain", 0, seed=0, size=size)[None].astype(np.float32) / 255


@pytest.mark.parametrize("kind", ARTEFACTS)
@pytest.mark.parametrize("seed", range(4))
def test_the_mask_is_exactly_where_pixels_changed(kind: str, seed: int) -> None:
    x = brain()
    one, two = (ARTEFACTS[kind](x, rng=np.random.default_rng(seed)) for _ in range(2))
    changed = np.abs(one.pixels - x).max(axis=0)
    assert np.array_equal(changed > 0, one.mask)
    assert changed[one.mask].min() >= LEAST - 1e-6
    assert one.mask.any()
    assert one.pixels.dtype == np.float32
    assert 0 <= one.pixels.min() <= one.pixels.max() <= 1
    assert np.array_equal(one.pixels, two.pixels)
    assert one.drawn == two.drawn
    assert all(isinstance(value, float) for value in one.drawn.values())


def test_a_star_has_its_core_and_as_many_rays_as_stated() -> None:
    ranges = StarRanges(radius=(0.3, 0.3), core=(0.03, 0.03), contrast=(0.5, 0.5), rays=(6, 6), width=(0.4, 0.4))
    middle = np.zeros((96, 110), bool)
    middle[48, 55] = True
    planted = star(FLAT, rng=np.random.default_rng(1), ranges=ranges, where=middle)
    assert planted.drawn["rays"] == 6
    assert planted.pixels[0, 48, 55] - 0.4 >= 0.5
    turn = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    ring = planted.pixels[0][np.rint(48 + 9 * np.sin(turn)).astype(int), np.rint(55 + 9 * np.cos(turn)).astype(int)] - 0.4
    waves = np.abs(np.fft.rfft(ring))
    assert np.argmax(waves[1:12]) + 1 == 3
    far = np.hypot(*np.meshgrid(np.arange(96) - 48, np.arange(110) - 55, indexing="ij"))
    assert not planted.mask[far > 0.3 * 96].any()


def test_a_streak_is_a_straight_line_from_border_to_border() -> None:
    planted = streaks(FLAT, rng=np.random.default_rng(2), count=(1, 1), contrast=(0.3, 0.3))
    rows, columns = np.nonzero(planted.mask)
    spread = np.linalg.svd(np.stack([rows - rows.mean(), columns - columns.mean()]), compute_uv=False)
    assert spread[1] < 0.1 * spread[0]
    assert rows.min() == 0 or columns.min() == 0
    assert abs(planted.drawn["contrast_0"]) == 0.3
    assert np.abs(planted.pixels - FLAT).max() == pytest.approx(0.3, abs=0.02)


def test_a_missing_wedge_takes_its_frequencies_and_no_others() -> None:
    x = 0.5 + 0.1 * np.random.default_rng(3).standard_normal((1, 64, 64)).clip(-3, 3)
    planted = missing_wedge(x, rng=np.random.default_rng(4), degrees=(40.0, 40.0))
    rows, columns = np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64)[None, :]
    away = np.abs((np.arctan2(rows, columns) - planted.drawn["axis"] + np.pi / 2) % np.pi - np.pi / 2)
    inside = (away < np.deg2rad(18)) & (np.hypot(rows, columns) > 0.05)
    outside = away > np.deg2rad(22)
    before, after = (np.abs(np.fft.fft2(v[0])) for v in (x, planted.pixels))
    assert after[inside].mean() < 0.1 * before[inside].mean()
    assert np.abs(after - before)[outside].mean() < 0.1 * before[outside].mean()


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(ConfigError, match="stars: radius"):
        StarRanges(radius=(0.3, 0.1))
    with pytest.raises(ConfigError, match="degrees"):
        missing_wedge(FLAT, rng=np.random.default_rng(0), degrees=(0.0, 10.0))
    with pytest.raises(ConfigError, match="width"):
        streaks(FLAT, rng=np.random.default_rng(0), width=(0.0, 0.1))
    with pytest.raises(ConfigError, match="empty"):
        star(FLAT, rng=np.random.default_rng(0), where=np.zeros((96, 110), bool))
