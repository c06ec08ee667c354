"""Random fields against their definitions."""

import numpy as np
import pytest
from scipy import ndimage

from offmap.simulate.texture import fractal_field, rise, smooth_field


@pytest.mark.parametrize("shape", [(64,), (48, 61), (12, 20, 16)])
def test_fields_are_standardised(shape: tuple[int, ...]) -> None:
    for field in (smooth_field(shape, 1.5, np.random.default_rng(0)), fractal_field(shape, 2.0, np.random.default_rng(0))):
        assert field.shape == shape
        assert abs(field.mean()) < 1e-9
        assert field.std() == pytest.approx(1.0)


def test_smooth_field_is_blurred_noise() -> None:
    noise = np.random.default_rng(0).standard_normal((60, 51))
    expected = ndimage.gaussian_filter(noise - noise.mean(), 3.0, mode="wrap", truncate=8)
    assert np.allclose(smooth_field((60, 51), 3.0, np.random.default_rng(0)), expected / expected.std(), atol=1e-6)


def test_fractal_field_has_its_spectrum() -> None:
    power = np.mean([np.abs(np.fft.fft(fractal_field((512,), 2.0, np.random.default_rng(s)))) ** 2 for s in range(200)], axis=0)
    slope = np.polyfit(np.log(np.arange(2, 100)), np.log(power[2:100]), 1)[0]
    assert slope == pytest.approx(-2.0, abs=0.1)


def test_rise_goes_both_ways() -> None:
    values = np.linspace(-1, 2, 31)
    up, down = rise(values, 0.0, 1.0), rise(values, 1.0, 0.0)
    assert np.allclose(up + down, 1.0)
    assert (np.diff(up) >= 0).all()
    assert up[0] == 0
    assert up[-1] == 1
