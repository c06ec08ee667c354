"""Radially scaled Mahalanobis against its two ends, and the choice of beta against densities by scipy."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.covariance import LedoitWolf
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.mahalanobis import Mahalanobis
from offmap.score.mahalanobis_pp import MahalanobisPP
from offmap.score.radial_mahalanobis import RadialMahalanobis

Signals = dict[str, Tensor]


def test_at_zero_and_one_it_is_its_two_ends(batches: list[Signals], unseen: Signals) -> None:
    for beta, end in ((0.0, Mahalanobis()), (1.0, MahalanobisPP())):
        torch.testing.assert_close(RadialMahalanobis(beta=beta).fit(batches).score(unseen), end.fit(batches).score(unseen))


@pytest.mark.parametrize("beta", [0.3, 1.5])
def test_it_equals_scikit_learn_on_scaled_features(unlabelled: list[Signals], fit_signals: Signals, unseen: Signals, beta: float) -> None:
    rows, queries = (s["features.last"].numpy() for s in (fit_signals, unseen))
    rows, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) ** beta for x in (rows, queries))
    expected = LedoitWolf().fit(rows).mahalanobis(queries)
    np.testing.assert_allclose(RadialMahalanobis(beta=beta).fit(unlabelled).score(unseen).numpy(), expected, rtol=1e-5)


def log_density(fit: Signals, queries: np.ndarray, beta: float) -> float:
    """Of the queries themselves, by the change of variables with a Jacobian taken by finite differences."""

    def phi(x: np.ndarray) -> np.ndarray:
        return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True) ** beta)

    rows, labels = phi(fit["features.last"].numpy()), fit["label"].numpy()
    means = {c: rows[labels == c].mean(axis=0) for c in np.unique(labels)}
    covariance = LedoitWolf(assume_centered=True).fit(np.stack([r - means[c] for r, c in zip(rows, labels, strict=True)])).covariance_
    densities = np.stack([multivariate_normal(m, covariance).logpdf(phi(queries)) for m in means.values()], axis=1)
    step = 1e-5 * np.eye(queries.shape[1])
    jacobians = np.stack([(phi(q + step) - phi(q - step)) / 2e-5 for q in queries])
    return float((logsumexp(densities, axis=1) - np.log(3) + np.linalg.slogdet(jacobians)[1]).sum())


def test_beta_is_the_likeliest_on_held_out_images(batches: list[Signals], fit_signals: Signals, unseen: Signals) -> None:
    generator = torch.Generator().manual_seed(5)
    stretch = [torch.exp(0.7 * torch.randn(len(s["label"]), 1, generator=generator, dtype=torch.float64)) for s in (fit_signals, unseen)]
    fit, held = ({**s, "features.last": s["features.last"] * f} for s, f in zip((fit_signals, unseen), stretch, strict=True))
    candidates = (0.0, 0.25, 0.5, 0.75, 0.9)
    likelihoods = [log_density(fit, held["features.last"].numpy(), beta) for beta in candidates]
    fitted = RadialMahalanobis(candidates=candidates).fit([fit], held_out=[held])
    assert float(fitted.state["beta"]) == candidates[int(np.argmax(likelihoods))] > 0
    plain = RadialMahalanobis(candidates=candidates).fit(batches, held_out=[unseen])
    expected = [log_density(fit_signals, unseen["features.last"].numpy(), beta) for beta in candidates]
    assert float(plain.state["beta"]) == candidates[int(np.argmax(expected))]


def test_without_held_out_images_a_share_is_kept_apart_and_then_used(batches: list[Signals], unseen: Signals) -> None:
    fitted = RadialMahalanobis().fit(batches)
    again = RadialMahalanobis(beta=float(fitted.state["beta"])).fit(batches)
    assert torch.equal(fitted.score(unseen), again.score(unseen))


def test_known_failure_the_likeliest_beta_may_hide_an_odd_length() -> None:
    generator = torch.Generator().manual_seed(6)
    direction = torch.nn.functional.normalize(torch.tensor([3.0, 0, 0]) + 0.1 * torch.randn(400, 3, generator=generator))
    rows = direction * torch.exp(1.5 * torch.randn(400, 1, generator=generator))
    fitted = RadialMahalanobis().fit([{"features.last": rows}])
    long = {"features.last": rows[:50] * 30}
    plain = RadialMahalanobis(beta=0.0).fit([{"features.last": rows}])
    assert float(fitted.state["beta"]) >= 0.75
    ratios = [float(f.score(long).median() / f.score({"features.last": rows}).median()) for f in (fitted, plain)]
    assert ratios[0] < 0.1 * ratios[1]


def test_too_few_images_to_choose_are_refused(unlabelled: list[Signals]) -> None:
    with pytest.raises(SignalError, match="give held_out, beta"):
        RadialMahalanobis().fit([{"features.last": unlabelled[0]["features.last"][:3]}])


@pytest.mark.parametrize("wrong", [{"beta": -0.1}, {"beta": 2.5}, {"candidates": []}, {"candidates": [1.0]}, {"shrinkage": "none"}])
def test_parameters_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        RadialMahalanobis.from_params(wrong)
