"""GradCon: error less weighted alignment, and where the alignment is noise."""

import numpy as np
import pytest
import torch

from offmap.core.errors import ConfigError, SignalError
from offmap.score.gradcon import GradCon


def given(count: int, seed: int, layers: int = 4) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    cosines = 2 * torch.rand(count, layers, generator=rng, dtype=torch.float64) - 1
    return {"gradcon.alignment": cosines, "reconstruction.l2": torch.rand(count, generator=rng, dtype=torch.float64)}


@pytest.mark.parametrize("weight", [0.0, 0.12, 2.0])
def test_it_is_the_error_less_the_weighted_mean_cosine(weight: float) -> None:
    test = given(9, 2)
    pairs = zip(test["reconstruction.l2"].tolist(), test["gradcon.alignment"].tolist(), strict=True)
    expected = [error - weight * sum(row) / len(row) for error, row in pairs]
    np.testing.assert_allclose(GradCon(weight=weight).fit([given(5, 1)]).score(test).numpy(), expected, rtol=1e-5, atol=1e-7)


def test_trap_where_usual_gradients_point_everywhere_only_the_error_is_left() -> None:
    """Cosines of random directions in a thousand weights: their mean moves a score by less than errors differ."""
    rng = torch.Generator().manual_seed(0)
    each, usual = torch.randn(50, 1000, generator=rng), torch.randn(1000, generator=rng)
    cosines = torch.cosine_similarity(each, usual[None], dim=1)[:, None]
    errors = torch.linspace(0.1, 1.0, 50)
    scores = GradCon().fit([given(5, 1, 1)]).score({"gradcon.alignment": cosines, "reconstruction.l2": errors})
    assert scores.argsort().tolist() == errors.argsort().tolist()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"weight = -0\.1"):
        GradCon(weight=-0.1)
    with pytest.raises(SignalError, match=r"\(5,\) must be \(N, L\)"):
        GradCon().fit([{**given(5, 1), "gradcon.alignment": torch.zeros(5)}])
