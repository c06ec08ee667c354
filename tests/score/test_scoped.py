"""SCOPED against scipy's kernel density."""

import numpy as np
import pytest
import torch
from scipy import stats
from tests.score.diffusion_signals import batch, of

from offmap.core.errors import ConfigError
from offmap.represent.curvature import scoped_ratios
from offmap.score.scoped import Scoped


def test_it_is_the_larger_of_two_kernel_densities() -> None:
    detector = Scoped()
    fit, test = batch(detector, 50, 2, seed=1), batch(detector, 15, 2, seed=2)
    rows, asked = of(detector, fit).numpy(), of(detector, test).numpy()
    z, where = ((v - rows.mean(axis=0)) / rows.std(axis=0) for v in (rows, asked))
    width = 50 ** (-1 / 5)
    expected = [max(-np.log(stats.norm(z[:, j], width).pdf(row[j]).mean()) for j in range(2)) for row in where]
    np.testing.assert_allclose(detector.fit([fit]).score(test).numpy(), expected, rtol=1e-5)


def test_far_ratios_do_not_underflow_and_keep_their_order() -> None:
    detector = Scoped(bandwidth=0.1)
    fitted = detector.fit([batch(detector, 50, 2, seed=1)])
    (name,) = detector.needs
    scores = fitted.score({name: torch.tensor([[-1e3, 1.0], [-1e4, 1.0], [-1e5, 1.0]], dtype=torch.float64)})
    assert bool(torch.isfinite(scores).all())
    assert scores.tolist() == sorted(scores.tolist())


def test_trap_where_in_the_image_the_change_is_does_not_matter() -> None:
    """Of a model of unit variance everywhere: one glaring pixel has the ratio of an image of slight noise."""
    usual = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    glaring = torch.zeros_like(usual)
    glaring[0, 0, 3, 3] = usual.norm()
    settings = {"levels": 1, "low": 1e-3, "high": 1e-3, "probes": 1}
    one, other = (float(scoped_ratios(lambda x, s: x / (1 + s.view(-1, 1, 1, 1) ** 2), x, settings, "s")) for x in (usual, glaring))
    assert one == pytest.approx(other, rel=1e-3)


@pytest.mark.parametrize("wrong", [{"probes": 0}, {"bandwidth": 0.0}, {"levels": 0}])
def test_values_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="scoped"):
        Scoped(**wrong)  # type: ignore[arg-type]
