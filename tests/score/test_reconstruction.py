"""Errors of reconstruction: the signal as it is, layers of equal weight, maps."""

from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.reconstruction import Measure, Reconstruction


def batch(measure: str, count: int, *, seed: int, layers: int = 3) -> dict[str, Tensor]:
    """Errors that differ in scale by layer, and their maps."""
    generator = torch.Generator().manual_seed(seed)
    wide = measure == "perceptual"
    scale = torch.logspace(-1, 2, layers if wide else 1, dtype=torch.float64).view(1, -1, 1, 1)
    maps = scale * torch.rand(count, layers if wide else 1, 4, 5, generator=generator, dtype=torch.float64)
    means = maps.mean(dim=(2, 3))
    return {f"reconstruction.{measure}": means if wide else means[:, 0], f"reconstruction.{measure}.map": maps}


@pytest.mark.parametrize("measure", get_args(Measure))
def test_score_and_map_are_the_signals_and_layers_are_in_units_of_their_means(measure: str) -> None:
    fit, test = batch(measure, 30, seed=1), batch(measure, 7, seed=2)
    fitted = Reconstruction(measure=measure).fit([fit])  # type: ignore[arg-type]
    rows, maps = (test[name].numpy() for name in (f"reconstruction.{measure}", f"reconstruction.{measure}.map"))
    if measure == "perceptual":
        means = fit["reconstruction.perceptual"].numpy().mean(axis=0)
        rows, maps = (rows / means).mean(axis=1), maps / means[None, :, None, None]
    np.testing.assert_allclose(fitted.score(test).numpy(), rows, rtol=1e-6)
    np.testing.assert_allclose(fitted.map(test).numpy(), maps.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(fitted.map(test).mean(dim=(1, 2)).numpy(), rows, rtol=1e-6)


def test_nothing_is_fitted_but_the_scale_of_layers() -> None:
    assert Reconstruction().fit([batch("l2", 5, seed=1)]).state == {}
    assert set(Reconstruction(measure="perceptual").fit([batch("perceptual", 5, seed=1)]).state) == {"scale"}


def test_trap_a_small_lesion_drowns_in_the_mean_and_stands_out_in_the_map() -> None:
    maps = 0.1 * torch.rand(40, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    usual = maps.mean(dim=(1, 2, 3))
    maps[20:, :, 10:12, 10:12] += 1.0
    fitted = Reconstruction().fit([{"reconstruction.l2": usual}])
    odd = {"reconstruction.l2": maps[20:].mean(dim=(1, 2, 3)), "reconstruction.l2.map": maps[20:]}
    assert float(fitted.score(odd).mean()) < 1.03 * float(usual.mean())
    assert fitted.map(odd).flatten(1).argmax(dim=1).tolist() == pytest.approx([10 * 64 + 10] * 20, abs=66)


def test_unknown_measures_and_other_shapes_are_refused() -> None:
    with pytest.raises(ConfigError, match="measure = 'l3' must be one of 'l1', 'l2'"):
        Reconstruction.from_params({"measure": "l3"})
    with pytest.raises(SignalError, match=r"\(5, 2\) must be \(N,\)"):
        Reconstruction().fit([{"reconstruction.l2": torch.rand(5, 2)}])
    fitted = Reconstruction(measure="perceptual").fit([batch("perceptual", 5, seed=1)])
    with pytest.raises(SignalError, match="2 layers, fitted on 3"):
        fitted.score(batch("perceptual", 5, seed=1, layers=2))
