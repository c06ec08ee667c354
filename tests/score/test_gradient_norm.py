"""Gradient norm: the signal as it is, or its distance from the usual."""

import numpy as np
import pytest
import torch
from tests.score.diffusion_signals import batch, of

from offmap.core.errors import ConfigError
from offmap.score.gradient_norm import GradientNorm


def test_one_sided_is_the_signal() -> None:
    detector = GradientNorm()
    fitted, test = detector.fit([batch(detector, 20, 0, seed=1)]), batch(detector, 10, 0, seed=2)
    torch.testing.assert_close(fitted.score(test), of(detector, test).float())


def test_two_sided_is_the_distance_of_logarithms_in_deviations() -> None:
    detector = GradientNorm(two_sided=True)
    fit, test = batch(detector, 40, 0, seed=1), batch(detector, 10, 0, seed=2)
    logs = np.log(of(detector, fit).numpy())
    expected = np.abs(np.log(of(detector, test).numpy()) - logs.mean()) / logs.std()
    np.testing.assert_allclose(detector.fit([fit]).score(test).numpy(), expected, rtol=1e-5)


def test_trap_a_flat_place_looks_usual_unless_both_sides_count() -> None:
    one, two = GradientNorm(), GradientNorm(two_sided=True)
    fit, (name,) = batch(one, 40, 0, seed=1), one.needs
    flat = {name: torch.tensor([1e-3], dtype=torch.float64)}
    assert float(one.fit([fit]).score(flat)) < float(one.fit([fit]).score(fit).min())
    assert float(two.fit([fit]).score(flat)) > float(two.fit([fit]).score(fit).max())


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="gradient_norm: levels = 0"):
        GradientNorm(levels=0)
