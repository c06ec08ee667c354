"""DDPM-OOD against the mean of z-scores."""

import numpy as np
import pytest
import torch
from tests.score.diffusion_signals import batch, of

from offmap.core.errors import ConfigError
from offmap.score.ddpm_ood import DDPMOOD


def test_it_is_the_mean_of_z_scores_of_unseen_images() -> None:
    detector = DDPMOOD()
    fit, held, test = (batch(detector, n, 5, seed=s) for n, s in ((60, 1), (40, 2), (10, 3)))
    rows, asked = of(detector, held).numpy(), of(detector, test).numpy()
    expected = ((asked - rows.mean(axis=0)) / rows.std(axis=0)).mean(axis=1)
    np.testing.assert_allclose(detector.fit([fit], held_out=[held]).score(test).numpy(), expected, rtol=1e-4, atol=1e-6)


def test_trap_statistics_of_training_images_make_unseen_ones_odd() -> None:
    """A model that knows its images restores them better: their mean is too low, so unseen images score above 0."""
    detector = DDPMOOD()
    known, unseen = batch(detector, 60, 5, seed=1, shift=-0.4), batch(detector, 60, 5, seed=2)
    test = batch(detector, 60, 5, seed=3)
    assert float(detector.fit([known]).score(test).median()) > 1
    assert abs(float(detector.fit([known], held_out=[unseen]).score(test).median())) < 0.3


def test_trap_a_smooth_odd_image_scores_low() -> None:
    detector = DDPMOOD()
    (name,) = detector.needs
    fitted = detector.fit([batch(detector, 60, 5, seed=1)])
    assert float(fitted.score({name: torch.full((1, 5), 0.01)})) < 0


def test_a_start_that_never_varies_does_no_harm() -> None:
    detector = DDPMOOD()
    (name,) = detector.needs
    rows = of(detector, batch(detector, 40, 5, seed=1))
    rows[:, 0] = 0.0
    assert bool(torch.isfinite(detector.fit([{name: rows}]).score({name: rows})).all())


@pytest.mark.parametrize("wrong", [{"every": 0}, {"every": 11}, {"levels": 1001}])
def test_values_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="ddpm_ood"):
        DDPMOOD(**wrong)  # type: ignore[arg-type]
