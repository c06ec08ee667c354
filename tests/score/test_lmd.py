"""LMD: the inpainting error as it is, and its map."""

import pytest
import torch
from tests.score.diffusion_signals import batch, of

from offmap.core.errors import ConfigError, SignalError
from offmap.represent.trajectories import checkerboard, lmd_errors
from offmap.score.lmd import LMD

DETECTOR = LMD()


def test_score_and_map_are_the_signals() -> None:
    fitted, test = DETECTOR.fit([batch(DETECTOR, 20, 0, seed=1)]), batch(DETECTOR, 10, 0, seed=2)
    torch.testing.assert_close(fitted.score(test), of(DETECTOR, test).float())
    (name,) = DETECTOR.map_needs
    maps = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fitted.map({name: maps}), maps[:, 0])
    assert fitted.state == {}


def test_trap_smooth_images_are_painted_well_and_rough_ones_are_not_however_usual() -> None:
    """A model that knows but smoothness: it fills hidden fields by the mean of the seen ones."""

    def smooth(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3), keepdim=True).expand_as(x)

    flat = torch.full((1, 1, 8, 8), 0.5)
    rough = 2.0 * checkerboard((8, 8), 8).float()[None, None] - 1.0
    settings = {"levels": 4, "low": 0.02, "high": 1.0, "cells": 4, "repeats": 1}
    flat_error, rough_error = (float(lmd_errors(smooth, x, settings, "s")) for x in (flat, rough))
    assert flat_error < 0.5 < rough_error


@pytest.mark.parametrize("wrong", [{"cells": 1}, {"repeats": 0}, {"repeats": 101}, {"levels": 0}])
def test_values_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="lmd"):
        LMD(**wrong)  # type: ignore[arg-type]


def test_a_signal_of_another_shape_is_refused() -> None:
    with pytest.raises(SignalError, match=r"must be \(N, 1\)"):
        DETECTOR.fit([batch(DETECTOR, 20, 3, seed=1)])
