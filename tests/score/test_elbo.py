"""The bound: its arithmetic, and that it lies below a marginal likelihood known in closed form."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from tests.score.bound_signals import parts

from offmap.core.errors import ConfigError, SignalError
from offmap.represent.likelihood import divergence
from offmap.score.elbo import ELBO


@pytest.mark.parametrize("unit", ["nats", "bits_per_value"])
def test_it_is_the_negative_bound(unit: str) -> None:
    fitted, test = ELBO(unit=unit).fit([parts(5, seed=1)]), parts(9, seed=2)  # type: ignore[arg-type]
    likely, kl, count = test["elbo.parts:samples=1"].numpy().T
    expected = (kl - likely) / (1 if unit == "nats" else count * math.log(2))
    np.testing.assert_allclose(fitted.score(test).numpy(), expected, rtol=1e-6)
    assert fitted.state == {}


def test_the_bound_meets_the_marginal_likelihood_of_a_linear_model_at_its_posterior() -> None:
    """``z ~ N(0, 1), x = w z + s e`` has ``x ~ N(0, w w^T + s^2)`` and a Gaussian posterior, at which bound and likelihood are equal."""
    w, s, x = np.array([0.8, -0.3, 0.5]), 0.4, np.array([0.2, 0.1, -0.7])
    variance = 1 / (1 + w @ w / s**2)
    mean = variance * (w @ x) / s**2
    exact = stats.multivariate_normal(np.zeros(3), np.outer(w, w) + s**2 * np.eye(3)).logpdf(x)
    for shift, spread in ((0.0, 1.0), (0.5, 1.0), (0.0, 2.0)):
        m, v = mean + shift, variance * spread
        expected = stats.norm(w * m, s).logpdf(x).sum() - 0.5 * (w @ w) * v / s**2
        kl = divergence(torch.tensor([[m]]), torch.tensor([[math.log(v)]]))
        given = {"elbo.parts:samples=1": torch.tensor([[expected, float(kl), 3.0]], dtype=torch.float64)}
        score = float(ELBO().fit([given]).score(given))
        assert score == pytest.approx(-exact, abs=1e-5) if shift == 0 and spread == 1 else score > -exact + 0.1


def test_trap_a_flat_image_is_more_probable_than_a_usual_one() -> None:
    """Under ``N(x, s^2)`` about its own mean, an image without texture has no error: the number is lowest of all."""
    texture = 0.1 * torch.randn(20, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    likely = [-0.5 * (x.square().sum(dim=1) / 0.01 + 64 * math.log(2 * math.pi * 0.01)) for x in (texture, 0 * texture)]
    usual, flat = ({"elbo.parts:samples=1": torch.stack([x, 0 * x + 3, 0 * x + 64], dim=1)} for x in likely)
    fitted = ELBO().fit([usual])
    assert float(fitted.score(flat).max()) < float(fitted.score(usual).min())


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"elbo: samples = -1 must lie between 0 \(the mean of the posterior\) and 1000"):
        ELBO(samples=-1)
    with pytest.raises(ConfigError, match="unit = 'bits'"):
        ELBO.from_params({"unit": "bits"})
    with pytest.raises(SignalError, match=r"\(5, 2\) must be \(N, 3\)"):
        ELBO().fit([{"elbo.parts:samples=1": torch.rand(5, 2)}])
