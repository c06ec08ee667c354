"""DoSE against scipy's kernel densities, and the paradox that it repairs."""

import numpy as np
import pytest
import torch
from scipy import stats
from tests.score.bound_signals import parts
from tests.score.likelihood_signals import beside
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.dose import DoSE
from offmap.score.elbo import ELBO

OWN = "elbo.parts:samples=1"


def given(count: int, seed: int, mean: float = -200.0) -> dict[str, Tensor]:
    return {OWN: parts(count, seed=seed, mean=mean)[OWN], "latent.code": beside(count, seed=seed + 50)["latent.code"]}


def statistics(signals: dict[str, Tensor]) -> np.ndarray:
    fit, divergence, _ = signals[OWN].numpy().T
    return np.stack([fit - divergence, divergence, fit, np.linalg.norm(signals["latent.code"].numpy(), axis=1)], axis=1)


@pytest.mark.parametrize(("held", "bandwidth"), [(40, None), (10, None), (0, 0.3)])
def test_it_is_the_sum_of_surprises_of_kernel_densities(held: int, bandwidth: float | None) -> None:
    """Of held-out images alone from 30 on, of all where there are fewer."""
    fit, unseen, test = given(50, 1), given(max(1, held), 2), given(15, 3)
    rows = statistics(unseen) if held >= 30 else np.concatenate([statistics(fit), statistics(unseen)]) if held else statistics(fit)
    mean, spread = rows.mean(axis=0), rows.std(axis=0)
    z, bank = (statistics(test) - mean) / spread, (rows - mean) / spread
    width = bandwidth or len(rows) ** (-1 / 5)
    expected = [-sum(np.log(stats.norm(bank[:, j], width).pdf(row[j]).mean()) for j in range(4)) for row in z]
    fitted = DoSE(bandwidth=bandwidth).fit([fit], held_out=[unseen] if held else None)
    np.testing.assert_allclose(fitted.score(test).numpy(), expected, rtol=1e-4)


def test_images_that_are_too_probable_are_odd_where_the_bound_finds_them_usual() -> None:
    usual, simple = given(100, 1), given(20, 2, mean=-100.0)
    dose, bound = DoSE().fit([usual]), ELBO().fit([usual])
    assert float(dose.score(simple).min()) > float(dose.score(usual).max())
    assert float(bound.score(simple).max()) < float(bound.score(usual).min())


def test_trap_statistics_that_are_usual_one_by_one_are_not_seen_together() -> None:
    """Divergence and length of the code rise together in usual images; an image with one high and one low is as usual."""
    rng = np.random.default_rng(0)
    along = rng.standard_normal(300)
    likely = torch.from_numpy(rng.normal(-200, 10, 300))
    rows = torch.stack([likely, torch.from_numpy(5 + along), torch.full((300,), 64.0).double()], dim=1)
    usual = {OWN: rows, "latent.code": torch.from_numpy(5 + along)[:, None]}
    odd = {OWN: torch.tensor([[-200.0, 6.2, 64.0]]).double(), "latent.code": torch.tensor([[3.8]]).double()}
    fitted = DoSE().fit([usual])
    assert float(fitted.score(odd)) < float(fitted.score(usual).quantile(0.9))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"bandwidth = 0\.0"):
        DoSE(bandwidth=0.0)
    one = {name: value[:1] for name, value in given(5, 1).items()}
    with pytest.raises(SignalError, match="1 images do not differ"):
        DoSE().fit([one])
