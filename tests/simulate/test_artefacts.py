"""Ghosts, crops, turns, stains and marks against other ways to compute the same."""

import itertools

import numpy as np
import pytest

from offmap.core.errors import ConfigError
from offmap.simulate.artefacts import GLYPHS, STAINS, crop, ghosting, overlay, rotation, stain_shift
from offmap.simulate.corruptions import corrupt
from offmap.simulate.phantoms import draw


def brain(size: int = 96) -> np.ndarray:
    return draw("brain", 0, seed=0, size=size)[None].astype(np.float64) / 255


def tissue(size: int = 96) -> np.ndarray:
    return draw("tissue", 0, seed=0, size=size).transpose(2, 0, 1).astype(np.float64) / 255


@pytest.mark.parametrize("seed", range(3))
def test_ghosts_are_lines_of_k_space_that_pulsate(seed: int) -> None:
    x, level, rng = brain(), 0.4, np.random.default_rng(seed)
    step, phase = round(96 / rng.uniform(2.5, 5.0)), rng.uniform(0.25, 0.5) * np.pi
    lines = 1 + level * np.cos(2 * np.pi * np.arange(96) * step / 96 + phase)
    expected = np.abs(np.fft.ifft2(np.fft.fft2(x) * lines[:, None]))
    assert np.allclose(ghosting(x, level, np.random.default_rng(seed)), expected, atol=1e-12)


def test_a_crop_of_half_of_a_ramp_has_half_its_slope() -> None:
    ramp = np.broadcast_to(np.arange(64.0), (1, 64, 64)) / 64
    out = crop(ramp, 0.5, np.random.default_rng(0))
    start = 0.5 * np.random.default_rng(0).uniform(0.0, 1.0, size=2)[1] * 64
    positions = np.clip((np.arange(64) + 0.5) * 0.5 + start - 0.5, 0, 63)
    assert np.allclose(out, positions / 64, atol=1e-12)


def test_crops_of_larger_severity_lie_inside_those_of_smaller() -> None:
    corners = np.stack(np.broadcast_arrays(np.arange(50.0)[:, None], np.arange(50.0)[None]))
    boxes = [crop(corners, level, np.random.default_rng(3)) for level in (0.05, 0.1, 0.2, 0.3)]
    assert all((b.min(axis=(1, 2)) >= a.min(axis=(1, 2))).all() for a, b in itertools.pairwise(boxes))
    assert all((b.max(axis=(1, 2)) <= a.max(axis=(1, 2))).all() for a, b in itertools.pairwise(boxes))


def test_a_quarter_turn_is_exact() -> None:
    x = np.random.default_rng(1).random((1, 33, 33))
    turned = rotation(x, 90.0, np.random.default_rng(0))[0]
    assert any(np.allclose(turned, np.rot90(x[0], k), atol=1e-9) for k in (1, 3))


@pytest.mark.filterwarnings("default")
def test_rotation_equals_monais() -> None:
    pytest.importorskip("monai", reason="needs the extra [train]")
    from monai.transforms import Rotate

    x = brain(65)
    sign = np.random.default_rng(4).choice([-1.0, 1.0])
    theirs = np.asarray(Rotate(angle=-sign * np.deg2rad(15), padding_mode="border")(x.astype(np.float32)))
    assert np.abs(rotation(x, 15.0, np.random.default_rng(4)) - theirs)[:, 8:-8, 8:-8].max() < 1e-3


def test_a_stain_shift_is_a_change_of_amounts() -> None:
    x, level = np.clip(tissue(), 0.05, 1.0), 0.3
    stains = STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True)
    gain, offset = (v / np.abs(v).max() for v in np.random.default_rng(2).uniform(-1.0, 1.0, size=(2, 3)))
    out = stain_shift(x, level, np.random.default_rng(2))
    for i, j in ((0, 0), (40, 71), (95, 3)):
        amounts = np.linalg.solve(stains.T, -np.log(x[:, i, j]))
        changed = amounts * (1 + level * gain) + level * offset / 5
        assert np.allclose(out[:, i, j], np.exp(-changed @ stains), rtol=1e-9)


def test_black_stays_black_under_another_stain() -> None:
    assert not stain_shift(np.zeros((3, 4, 4)), 0.5, np.random.default_rng(0)).any()


def test_stains_of_a_grey_image_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"\(1, 8, 8\) are grey"):
        corrupt(np.full((1, 8, 8), 0.5, np.float32), "stain_shift", severity=1, seed=0)


@pytest.mark.parametrize("seed", range(6))
def test_marks_are_added_one_by_one_and_never_on_one_another(seed: int) -> None:
    dark, bright = np.full((1, 128, 160), 0.2), np.full((3, 128, 160), 0.8)
    drawn = [overlay(dark, level, np.random.default_rng(seed)) != dark for level in (1.0, 2.0, 3.0, 4.0, 5.0)]
    assert all((b >= a).all() for a, b in itertools.pairwise(drawn))
    counts = [int(d.sum()) for d in drawn]
    assert all(np.diff(counts) >= 30), counts
    assert set(np.unique(overlay(dark, 5.0, np.random.default_rng(seed)))) == {0.2, 1.0}
    assert set(np.unique(overlay(bright, 5.0, np.random.default_rng(seed)))) == {0.0, 0.8}


def test_the_first_mark_is_an_l_or_an_r() -> None:
    points = {name: sum(text.count("1") for text in GLYPHS[name].split()) for name in "LR"}
    found = {int((overlay(np.zeros((1, 70, 70)), 1.0, np.random.default_rng(seed)) > 0).sum()) for seed in range(20)}
    assert found == set(points.values())
    assert all([len(rows) for rows in text.split()] == [5] * 7 for text in GLYPHS.values())


def test_tiny_images_can_be_marked() -> None:
    assert overlay(np.zeros((1, 9, 8)), 5.0, np.random.default_rng(0)).any()
