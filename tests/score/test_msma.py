"""MSMA against scipy's Gaussian and scikit-learn's mixture."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.mixture import GaussianMixture
from tests.score.diffusion_signals import batch, of

from offmap.core.errors import ConfigError, SignalError
from offmap.score.msma import MSMA

ONE = MSMA(levels=4, components=1)


def test_one_component_is_a_gaussian_of_standardised_norms() -> None:
    fit, test = batch(ONE, 80, 4, seed=1), batch(ONE, 20, 4, seed=2)
    rows = of(ONE, fit).numpy()
    mean, scale = rows.mean(axis=0), rows.std(axis=0)
    z, asked = (rows - mean) / scale, (of(ONE, test).numpy() - mean) / scale
    covariance = z.T @ z / len(z) + 1e-3 * np.eye(4)
    expected = -stats.multivariate_normal(np.zeros(4), covariance).logpdf(asked)
    np.testing.assert_allclose(ONE.fit([fit]).score(test).numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_several_components_are_chosen_by_the_information_criterion_and_scored_as_by_scikit_learn(covariance: str) -> None:
    detector = MSMA(levels=4, components=3, covariance=covariance)
    near, far = batch(detector, 60, 4, seed=1, scale=0.2), batch(detector, 60, 4, seed=3, shift=2.0, scale=0.2)
    fit = {name: torch.cat([near[name], far[name]]) for name in near}
    state = detector.fit([fit]).state
    assert len(state["means"]) >= 2
    model = GaussianMixture(len(state["means"]), covariance_type="full")
    factors = state["factors"].numpy()
    model.means_, model.weights_ = state["means"].numpy(), state["log_weights"].exp().numpy()
    model.covariances_ = factors @ factors.transpose(0, 2, 1)
    model.precisions_cholesky_ = np.stack([np.linalg.inv(f).T for f in factors])
    test = batch(detector, 30, 4, seed=2)
    z = (of(detector, test).numpy() - state["mean"].numpy()) / state["scale"].numpy()
    np.testing.assert_allclose(detector.fit([fit]).score(test).numpy(), -model.score_samples(z), rtol=1e-5, atol=1e-4)


def test_norms_that_are_too_small_are_as_odd_as_ones_that_are_too_large() -> None:
    fitted = ONE.fit([batch(ONE, 80, 4, seed=1)])
    usual = fitted.score(batch(ONE, 40, 4, seed=2))
    for shift in (-2.0, 2.0):
        assert float(fitted.score(batch(ONE, 40, 4, seed=2, shift=shift)).min()) > float(usual.max())


def test_held_out_images_alone_make_the_density_where_there_are_thirty() -> None:
    known, unseen = batch(ONE, 80, 4, seed=1), batch(ONE, 30, 4, seed=5, shift=0.5)
    test = batch(ONE, 10, 4, seed=2)
    torch.testing.assert_close(ONE.fit([known], held_out=[unseen]).score(test), ONE.fit([unseen]).score(test))
    few = {name: value[:29] for name, value in unseen.items()}
    both = {name: torch.cat([known[name], few[name]]) for name in known}
    torch.testing.assert_close(ONE.fit([known], held_out=[few]).score(test), ONE.fit([both]).score(test))


def test_trap_a_change_that_no_norm_shows_is_missed() -> None:
    """The sum over an image of 4,096 pixels hides a lesion of nine: the norm changes by less than its spread."""
    usual = 1.0 + 0.01 * torch.randn(200, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    detector = MSMA(levels=1, components=1)
    (name,) = detector.needs
    fitted = detector.fit([{name: usual}])
    lesion = (usual.square() + 9 / 4096 * (1.5**2 - 1)).sqrt()
    area = (fitted.score({name: lesion})[:, None] > fitted.score({name: usual})).double().mean()
    assert float(area) < 0.6


@pytest.mark.parametrize(
    "wrong",
    [{"levels": 0}, {"low": 0.0}, {"low": 2.0, "high": 1.0}, {"components": 0}, {"floor": 0.0}],
)
def test_values_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="msma"):
        MSMA(**wrong)  # type: ignore[arg-type]


def test_another_number_of_levels_is_refused() -> None:
    fitted = ONE.fit([batch(ONE, 40, 4, seed=1)])
    with pytest.raises(SignalError, match=r"must be \(N, 4\)"):
        fitted.score(batch(ONE, 3, 5, seed=1))
    with pytest.raises(SignalError, match="at least two different images"):
        ONE.fit([batch(ONE, 1, 4, seed=1)])
