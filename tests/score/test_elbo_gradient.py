"""The gradient of the bound times the error: the mean of its map, and edges that shine."""

import pytest
import torch

from offmap.core.errors import ConfigError, SignalError
from offmap.represent.elbo_slopes import smoothed
from offmap.score.elbo_gradient import ELBOGradient

NAME = "elbo_gradient.map:smoothing=2"


def test_the_score_is_the_mean_of_the_map_and_the_map_is_the_signal() -> None:
    maps = torch.rand(3, 1, 8, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    detector = ELBOGradient()
    assert detector.needs == detector.map_needs == {NAME}
    fitted = detector.fit([{NAME: maps}])
    expected = [sum(sum(row) for row in image[0]) / 72 for image in maps.tolist()]
    torch.testing.assert_close(fitted.score({NAME: maps}).double(), torch.tensor(expected).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(fitted.map({NAME: maps}), maps[:, 0].float())


def test_trap_a_usual_edge_outshines_a_smooth_lesion() -> None:
    """A model that restores all but fine detail, with a deviation of 0.05: what is left is the edge of the body, not the faint spot."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 32)] * 2, indexing="ij")
    body = (x.square() + y.square() < 0.6).float() * 0.6
    spot = 0.2 * torch.exp(-20 * ((x - 0.2).square() + y.square()))
    image = (body + spot)[None, None]
    restored = smoothed(image, 1.5)
    steep = (image - restored).abs() / 0.05**2
    maps = smoothed(steep * (image - restored).abs(), 2.0)[0, 0]
    peak = int(maps.argmax())
    at_peak = (float(y.flatten()[peak]) ** 2 + float(x.flatten()[peak]) ** 2) ** 0.5
    assert at_peak > 0.6
    assert float(maps[16, 19]) < 0.1 * float(maps.max())


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"smoothing = -1\.0"):
        ELBOGradient(smoothing=-1.0)
    with pytest.raises(SignalError, match=r"must be \(N, 1, \*S\)"):
        ELBOGradient().fit([{NAME: torch.zeros(4, 8, 8)}])
