"""The range and the sum of the norms against the formula, and what weak noise does."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from offmap.core.errors import SignalError
from offmap.score.invad import InvAD


def norms(latent: Tensor) -> dict[str, Tensor]:
    return {"invad.map": latent.norm(dim=1, keepdim=True)}


def latent(count: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, 9, 5, 4, generator=torch.Generator().manual_seed(seed))


def test_it_is_the_range_plus_the_sum_of_the_norms() -> None:
    z = latent()
    length = np.sqrt((z.double().numpy() ** 2).sum(axis=1)).reshape(6, -1)
    fitted = InvAD().fit([norms(latent(seed=1))])
    expected = (length.max(axis=1) - length.min(axis=1)) + length.sum(axis=1)
    np.testing.assert_allclose(fitted.score(norms(z)).numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(fitted.map(norms(z)).numpy().reshape(6, -1), length, rtol=1e-5)


def test_usual_noise_has_the_mean_of_a_chi_distribution() -> None:
    z = torch.randn(200, 9, 5, 4, generator=torch.Generator().manual_seed(3))
    chi = math.sqrt(2) * math.exp(math.lgamma(5) - math.lgamma(4.5))
    mapped = InvAD().fit([norms(z)]).map(norms(z))
    assert float(mapped.mean()) == pytest.approx(chi, rel=0.01)


def test_known_failure_noise_that_is_too_weak_is_not_odd() -> None:
    fitted = InvAD().fit([norms(latent())])
    usual, weak, strong = (fitted.score(norms(k * latent())) for k in (1.0, 0.5, 2.0))
    assert float(weak.max()) < float(usual.min()) < float(usual.max()) < float(strong.min())


def test_another_shape_is_refused() -> None:
    with pytest.raises(SignalError, match=r"\(6, 9, 5, 4\) must be \(N, 1, ...\)"):
        InvAD().fit([{"invad.map": latent()}])
