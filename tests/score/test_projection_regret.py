"""Projection regret: z-scores of levels against numpy, and the signal against its formula."""

import numpy as np
import pytest
import torch
from tests.represent.test_diffusion_signals import EXACT, draw
from tests.score.diffusion_signals import batch, of

from offmap.core.errors import ConfigError
from offmap.represent.noised import noise_of
from offmap.represent.trajectories import projection_regrets
from offmap.score.projection_regret import ProjectionRegret

DETECTOR = ProjectionRegret()


def test_the_score_is_the_mean_z_of_levels() -> None:
    own, test = batch(DETECTOR, 80, 3, seed=1), batch(DETECTOR, 20, 3, seed=2)
    fitted = DETECTOR.fit([batch(DETECTOR, 9, 3, seed=5)], held_out=[own])
    rows, new = of(DETECTOR, own).numpy(), of(DETECTOR, test).numpy()
    np.testing.assert_allclose(fitted.score(test).numpy(), ((new - rows.mean(0)) / rows.std(0)).mean(1), rtol=1e-5)


def test_the_signal_is_that_of_the_formula() -> None:
    x, level, repeats = draw(4), 0.7, 2
    noise, expected = noise_of(x, 2 * repeats), np.zeros(4)
    for r in range(repeats):
        once = EXACT(x + level * noise[:, 2 * r], torch.full((4,), level))
        twice = EXACT(once + level * noise[:, 2 * r + 1], torch.full((4,), level))
        near, far = ((a - b).square().flatten(1).mean(dim=1).numpy() for a, b in ((x, once), (once, twice)))
        expected += (near - far) / repeats
    found = projection_regrets(EXACT, x, {"levels": 1, "low": level, "high": level, "repeats": repeats}, "s")
    np.testing.assert_allclose(found[:, 0].numpy(), expected, rtol=1e-5)


def test_what_lies_off_the_model_regrets_more() -> None:
    settings = {"levels": 2, "low": 0.3, "high": 1.0, "repeats": 4}
    usual, odd = (projection_regrets(EXACT, draw(60, 1) + shift, settings, "s").mean(dim=1) for shift in (0.0, 1.5))
    assert float(odd.median()) > float(usual.max())


def test_trap_a_faint_change_drowns_in_the_noise_of_a_high_level() -> None:
    """At a level far above the change and the model's spread, both projections are the mean, and the change is all that is left."""
    faint = 0.05 * torch.ones(1, 6, 6, dtype=torch.float64)
    settings = {"levels": 1, "low": 8.0, "high": 8.0, "repeats": 4}
    usual, odd = (projection_regrets(EXACT, draw(60, 1) + shift, settings, "s") for shift in (0.0 * faint, faint))
    assert abs(float(odd.mean() - usual.mean())) < 0.1 * float(usual.std())


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"levels": 0}, {"low": 0.0}])
def test_values_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="projection_regret"):
        ProjectionRegret(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="repeats = 0"):
        projection_regrets(EXACT, draw(2), {"levels": 1, "low": 1.0, "high": 1.0, "repeats": 0}, "s")
