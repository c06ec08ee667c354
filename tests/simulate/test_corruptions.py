"""Graded damage: larger severity, larger distance; always seeded, always in [0, 1]."""

import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

from offmap.core.errors import ConfigError, SignalError
from offmap.simulate.corruptions import CORRUPTIONS, corrupt
from offmap.simulate.phantoms import draw

OWN = [name for name, c in CORRUPTIONS.items() if not c.monai]
BORROWED = [name for name, c in CORRUPTIONS.items() if c.monai]


def prepared(family: str, size: int = 96) -> np.ndarray:
    picture = draw(family, 0, seed=0, size=size).astype(np.float32) / 255
    return picture[None] if picture.ndim == 2 else picture.transpose(2, 0, 1)


def distances(name: str, pixels: np.ndarray, seed: int) -> list[float]:
    return [float(np.abs(corrupt(pixels, name, severity=s, seed=seed) - pixels).mean()) for s in range(1, 6)]


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("family", ["brain", "chest", "skin", "tissue"])
def test_a_larger_severity_is_a_larger_distance(name: str, family: str) -> None:
    pixels = prepared(family)
    if CORRUPTIONS[name].colour and len(pixels) != 3:
        pytest.skip("changes colours; this family is grey")
    for seed in range(3):
        steps = distances(name, pixels, seed)
        assert steps[0] > 0
        assert all(np.diff(steps) > 0), steps


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", BORROWED)
def test_monais_corruptions_are_graded_too(name: str) -> None:
    pytest.importorskip("monai", reason="needs the extra [train]")
    steps = distances(name, prepared("brain"), 0)
    assert steps[0] > 0
    assert all(np.diff(steps) > 0), steps


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("shape", [(1, 40, 57), (3, 33, 32)])
def test_same_seed_same_damage_and_the_image_is_left_alone(name: str, shape: tuple[int, int, int]) -> None:
    if CORRUPTIONS[name].colour and shape[0] != 3:
        pytest.skip("changes colours")
    pixels = np.random.default_rng(0).random(shape, dtype=np.float32)
    kept = pixels.copy()
    one, two = (corrupt(pixels, name, severity=3, seed=5) for _ in range(2))
    assert np.array_equal(one, two)
    assert np.array_equal(pixels, kept)
    assert one.shape == shape
    assert one.dtype == np.float32
    assert one.min() >= 0
    assert one.max() <= 1


def test_gaussian_noise_has_the_stated_strength() -> None:
    noisy = corrupt(np.full((1, 200, 200), 0.5, np.float32), "noise", severity=2, seed=0)
    assert noisy.std() == pytest.approx(0.04, rel=0.02)


def test_rician_noise_on_black_follows_rayleigh() -> None:
    noisy = corrupt(np.zeros((1, 200, 200), np.float32), "rician_noise", severity=3, seed=0)
    assert noisy.mean() == pytest.approx(0.07 * np.sqrt(np.pi / 2), rel=0.02)


def test_blur_and_contrast_follow_their_formulas() -> None:
    pixels = prepared("brain", 100)
    assert np.allclose(
        corrupt(pixels, "blur", severity=5, seed=0)[0], ndimage.gaussian_filter(pixels[0].astype(float), 2.2, mode="nearest"), atol=1e-6
    )
    flat = corrupt(pixels, "contrast", severity=4, seed=0)
    assert flat.std() == pytest.approx(0.4 * pixels.std(), rel=1e-4)
    assert flat.mean() == pytest.approx(pixels.mean(), rel=1e-4)


def test_motion_leaves_what_does_not_change_along_the_rows() -> None:
    columns = np.broadcast_to(np.linspace(0.1, 0.9, 64, dtype=np.float32), (1, 64, 64)).copy()
    assert np.allclose(corrupt(columns, "motion", severity=5, seed=0), columns, atol=1e-5)


def test_bias_field_is_smooth_and_bounded() -> None:
    gain = corrupt(np.full((1, 64, 64), 0.3, np.float32), "bias_field", severity=5, seed=0)[0] / 0.3
    assert np.abs(np.log(gain)).max() == pytest.approx(0.7, abs=1e-3)
    assert np.abs(np.diff(gain, axis=0)).max() < 0.25


def test_there_are_more_than_twelve_kinds_of_five_severities() -> None:
    assert len(CORRUPTIONS) == 17
    assert all(len(c.levels) == 5 and len(set(c.levels)) == 5 for c in CORRUPTIONS.values())


@pytest.mark.parametrize(("name", "severity"), [("nois", 1), ("noise", 0), ("noise", 6)])
def test_unknown_names_and_severities_are_refused(name: str, severity: int) -> None:
    with pytest.raises(ConfigError, match="noise"):
        corrupt(np.zeros((1, 8, 8), np.float32), name, severity=severity, seed=0)


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_images_that_are_not_prepared_are_refused(value: float) -> None:
    with pytest.raises(SignalError, match=r"\[0, 1\]"):
        corrupt(np.full((1, 8, 8), value, np.float32), "noise", severity=1, seed=0)


def test_importing_simulate_imports_neither_torch_nor_monai() -> None:
    code = (
        "import sys, offmap.simulate.corruptions, offmap.simulate.forms, offmap.simulate.anomalies, offmap.simulate.phantoms;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'monai')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
