"""Energy against scipy, its limits in the temperature, and what it does not survive."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.score.energy import Energy
from offmap.score.max_logit import MaxLogit

Signals = dict[str, Tensor]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 10.0])
def test_it_equals_scipy(batches: list[Signals], unseen: Signals, temperature: float) -> None:
    expected = -temperature * logsumexp(unseen["logits"].numpy() / temperature, axis=1)
    got = Energy(temperature=temperature).fit(batches).score(unseen)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_small_temperature_gives_max_logit(batches: list[Signals], unseen: Signals) -> None:
    cold = Energy(temperature=1e-4).fit(batches).score(unseen)
    torch.testing.assert_close(cold, MaxLogit().fit(batches).score(unseen), rtol=0, atol=2e-4)


def test_large_logits_do_not_overflow() -> None:
    fitted = Energy().fit([{"logits": torch.zeros(1, 2)}])
    assert fitted.score({"logits": torch.tensor([[1e4, 0.0], [-1e4, -1e4]])}).tolist() == pytest.approx([-1e4, 1e4 - np.log(2)])


def test_known_failure_distant_images_have_low_energy(batches: list[Signals], unseen: Signals) -> None:
    fitted = Energy().fit(batches)
    distant = {"logits": unseen["logits"] * 100}
    assert float(fitted.score(distant).median()) < float(fitted.score(unseen).median())


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_a_temperature_out_of_range_is_refused(temperature: float) -> None:
    with pytest.raises(ConfigError, match="greater than 0"):
        Energy(temperature=temperature)
