"""Drawn lesions: where the mask says, and of the stated size and contrast."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from offmap.core.errors import ConfigError
from offmap.simulate.lesions import LesionRanges, TumourRanges, foreground, plant_lesion, plant_tumour

FLAT = np.full((1, 120, 140), 0.4, np.float32)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), channels=st.sampled_from([1, 3]))
def test_the_mask_is_exact(seed: int, channels: int) -> None:
    pixels = np.random.default_rng(0).uniform(0.2, 0.5, (channels, 90, 70)).astype(np.float32)
    planted = plant_lesion(pixels, rng=np.random.default_rng(seed))
    changed = (planted.pixels != pixels).any(axis=0)
    assert not changed[~planted.mask].any()
    assert changed[planted.mask].mean() > 0.95
    assert planted.mask.any()
    assert planted.pixels.min() >= 0
    assert planted.pixels.max() <= 1


@pytest.mark.parametrize("radius", [0.05, 0.1, 0.2])
def test_the_size_is_the_stated_one(radius: float) -> None:
    ranges = LesionRanges(radius=(radius, radius), irregularity=(0.0, 0.0), edge=(0.2, 0.2))
    middle = np.zeros((120, 140), bool)
    middle[55:65, 65:75] = True
    areas = [plant_lesion(FLAT, rng=np.random.default_rng(s), ranges=ranges, where=middle).mask.sum() for s in range(40)]
    assert np.median(areas) == pytest.approx(np.pi * (radius * 120 * 1.1) ** 2, rel=0.2)


@pytest.mark.parametrize(("sign", "contrast"), [("bright", 0.3), ("dark", 0.2)])
def test_the_contrast_is_the_stated_one(sign: str, contrast: float) -> None:
    ranges = LesionRanges(radius=(0.1, 0.1), contrast=(contrast, contrast), texture=(0.0, 0.0), sign=sign)  # type: ignore[arg-type]
    planted = plant_lesion(FLAT, rng=np.random.default_rng(0), ranges=ranges)
    centre = int(planted.drawn["centre_h"]), int(planted.drawn["centre_w"])
    step = planted.pixels[0][centre] - 0.4
    assert step == pytest.approx(contrast if sign == "bright" else -contrast, abs=1e-6)


def test_the_edge_is_soft() -> None:
    ranges = LesionRanges(radius=(0.15, 0.15), texture=(0.0, 0.0), edge=(0.5, 0.5), contrast=(0.4, 0.4))
    planted = plant_lesion(FLAT, rng=np.random.default_rng(0), ranges=ranges)
    assert np.abs(np.diff(planted.pixels[0], axis=0)).max() < 0.12


def test_lesions_lie_where_they_are_allowed() -> None:
    where = np.zeros((120, 140), bool)
    where[20:30, 100:120] = True
    for seed in range(20):
        drawn = plant_lesion(FLAT, rng=np.random.default_rng(seed), where=where).drawn
        assert where[int(drawn["centre_h"]), int(drawn["centre_w"])]


def test_without_a_place_given_they_lie_in_the_body() -> None:
    y, x = np.mgrid[:100, :100]
    body = np.hypot(y - 50, x - 50) < 30
    pixels = (0.6 * body)[None].astype(np.float32)
    reach = ndimage.binary_dilation(body, iterations=4)
    assert (foreground(pixels) <= reach).all()
    for seed in range(20):
        drawn = plant_lesion(pixels, rng=np.random.default_rng(seed)).drawn
        assert reach[int(drawn["centre_h"]), int(drawn["centre_w"])]


def test_volumes_get_round_lesions() -> None:
    planted = plant_lesion(np.full((1, 24, 40, 40), 0.5, np.float32), rng=np.random.default_rng(0), ranges=LesionRanges(radius=(0.2, 0.2)))
    assert planted.mask.shape == (24, 40, 40)
    assert min(axis.size for axis in map(np.unique, np.nonzero(planted.mask))) >= 5


def test_same_seed_same_lesion() -> None:
    one, two = (plant_lesion(FLAT, rng=np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(one.pixels, two.pixels)
    assert one.drawn == two.drawn


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(ConfigError, match="empty"):
        plant_lesion(FLAT, rng=np.random.default_rng(0), where=np.zeros((120, 140), bool))
    with pytest.raises(ConfigError, match="radius"):
        LesionRanges(radius=(0.2, 0.1))
    with pytest.raises(ConfigError, match="edge"):
        LesionRanges(edge=(0.0, 0.5))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000))
def test_tumours_stay_in_the_body_and_their_mask_is_exact(seed: int) -> None:
    y, x = np.mgrid[:80, :90]
    body = np.hypot(y - 40, x - 45) < 30
    pixels = np.where(body, 0.4, 0.0)[None].astype(np.float32)
    one, two = (plant_tumour(pixels, rng=np.random.default_rng(seed)) for _ in range(2))
    assert not (one.pixels != pixels).any(axis=0)[~one.mask].any()
    assert (one.mask <= foreground(pixels)).all()
    assert one.mask.any()
    assert np.array_equal(one.pixels, two.pixels)
    assert one.drawn == two.drawn
    assert set(one.drawn) == {f.name for f in dataclasses.fields(TumourRanges)} | {"centre_h", "centre_w"}


def test_a_tumour_has_a_rim_a_darker_core_and_surroundings_as_stated() -> None:
    fixed = {"radius": 0.2, "contrast": 0.3, "core": 0.5, "core_contrast": 0.2, "oedema": 1.5, "oedema_contrast": 0.4, "edge": 0.2}
    ranges = TumourRanges(**{k: (v, v) for k, v in fixed.items()}, texture=(0.0, 0.0), irregularity=(0.0, 0.0))
    middle = np.zeros((120, 140), bool)
    middle[60, 70] = True
    planted = plant_tumour(FLAT, rng=np.random.default_rng(2), ranges=ranges, where=middle)
    change = planted.pixels[0] - 0.4
    assert change[60, 70] == pytest.approx(0.3 * 0.2, abs=1e-3)
    assert change.max() == pytest.approx(0.3, abs=1e-3)
    levels, counts = np.unique(np.round(change[planted.mask], 3), return_counts=True)
    assert {0.06, 0.12, 0.3} <= {round(float(v), 2) for v in levels[counts > 100]}
    assert np.abs(np.diff(planted.pixels[0], axis=0)).max() < 0.2


def test_volumes_get_tumours() -> None:
    planted = plant_tumour(np.full((1, 24, 40, 40), 0.5, np.float32), rng=np.random.default_rng(0), ranges=TumourRanges(radius=(0.2, 0.2)))
    assert planted.mask.shape == (24, 40, 40)


@pytest.mark.parametrize(("name", "ends"), [("radius", (0.0, 0.1)), ("oedema", (0.5, 2.0)), ("edge", (0.3, 0.1)), ("texture", (-0.1, 0.2))])
def test_impossible_tumours_are_refused(name: str, ends: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match=name):
        TumourRanges(**{name: ends})
