"""WAIC: mean and variance over models, and which of them decides."""

import statistics

import numpy as np
import pytest
import torch
from tests.score.likelihood_signals import MEMBERS, beside

from offmap.core.errors import ConfigError, SignalError
from offmap.score.waic import WAIC


def test_it_is_variance_minus_mean_over_the_models() -> None:
    test = {MEMBERS: beside(9, seed=2)[MEMBERS]}
    expected = [statistics.variance(row) - statistics.fmean(row) for row in test[MEMBERS].tolist()]
    np.testing.assert_allclose(WAIC().fit([{MEMBERS: beside(5, seed=1)[MEMBERS]}]).score(test).numpy(), expected, rtol=1e-5)


def test_trap_in_large_images_the_disagreement_alone_decides() -> None:
    """A hundred times the pixels: an unlikely image on which models agree is less odd than a likely one on which they do not."""
    unlikely = torch.full((1, 5), -300.0) + torch.tensor([[-1.0, 0, 0, 0, 1]])
    likely = torch.full((1, 5), -200.0) + torch.tensor([[-9.0, 0, 0, 0, 9]])
    both = torch.cat([unlikely, likely])
    small, large = (WAIC().fit([{MEMBERS: both * k}]).score({MEMBERS: both * k}).tolist() for k in (1, 100))
    assert small[0] > small[1]
    assert large[0] < large[1]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="samples = 1001"):
        WAIC(samples=1001)
    with pytest.raises(SignalError, match=r"\(4, 1\) must be \(N, K\) of K >= 2 models: train with members = 5"):
        WAIC().fit([{MEMBERS: torch.zeros(4, 1)}])
