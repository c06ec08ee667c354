"""Likelihood less complexity: the formula, and two images that only the difference orders rightly."""

import math

import numpy as np
import pytest
import torch
from tests.score.bound_signals import parts

from offmap.core.errors import ConfigError, SignalError
from offmap.score.complexity import Complexity
from offmap.score.elbo import ELBO


def test_it_is_the_difference_of_two_code_lengths() -> None:
    fitted, test = Complexity().fit([parts(5, seed=1)]), parts(9, seed=2)
    likely, kl, count = test["elbo.parts:samples=1"].numpy().T
    expected = ((kl - likely) / math.log(2) - test["complexity.bits"].numpy()) / count
    np.testing.assert_allclose(fitted.score(test).numpy(), expected, rtol=1e-5, atol=1e-7)
    assert fitted.state == {}


def test_it_repairs_the_order_that_likelihood_alone_turns_round() -> None:
    """The odd images are simple: 100 bits for the model, 60 for the compressor; the usual ones take 300 and 320."""

    def images(model: float, compressed: float) -> dict[str, torch.Tensor]:
        return {
            "elbo.parts:samples=1": torch.tensor([[-model * math.log(2), 0.0, 64.0]], dtype=torch.float64),
            "complexity.bits": torch.tensor([compressed]),
        }

    usual, odd = images(300, 320), images(100, 60)
    assert float(ELBO().fit([usual]).score(odd)) < float(ELBO().fit([usual]).score(usual))
    fitted = Complexity().fit([usual])
    assert float(fitted.score(odd)) == pytest.approx(40 / 64, rel=1e-5)
    assert float(fitted.score(usual)) == pytest.approx(-20 / 64, rel=1e-5)


def test_trap_noise_costs_both_the_same_and_is_called_usual() -> None:
    test = {"elbo.parts:samples=1": torch.tensor([[-512 * math.log(2), 0.0, 64.0]]), "complexity.bits": torch.tensor([512.0])}
    usual = {"elbo.parts:samples=1": torch.tensor([[-300 * math.log(2), 0.0, 64.0]]), "complexity.bits": torch.tensor([300.0])}
    fitted = Complexity().fit([usual])
    assert float(fitted.score(test)) == pytest.approx(float(fitted.score(usual)), abs=1e-5)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="complexity: samples = 1001"):
        Complexity(samples=1001)
    with pytest.raises(SignalError, match=r"complexity\.bits of shape \(5, 1\) must be \(N,\)"):
        Complexity().fit([{**parts(5, seed=1), "complexity.bits": torch.rand(5, 1)}])
