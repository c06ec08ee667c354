"""The mixture against scipy's densities."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, spearmanr
from sklearn.covariance import LedoitWolf
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.score.gmm import GMM
from offmap.score.mahalanobis import Mahalanobis

Signals = dict[str, Tensor]


@pytest.mark.parametrize("tied", [None, 0.3, 1.0])
def test_it_equals_scipy(batches: list[Signals], fit_signals: Signals, unseen: Signals, tied: float | None) -> None:
    rows, labels, queries = fit_signals["features.last"].numpy(), fit_signals["label"].numpy(), unseen["features.last"].numpy()
    groups = [rows[labels == c] for c in np.unique(labels)]
    common = LedoitWolf(assume_centered=True).fit(np.concatenate([g - g.mean(axis=0) for g in groups])).covariance_
    densities = []
    for g in groups:
        weight = tied or 13 / (12 + len(g))
        covariance = (1 - weight) * np.cov(g.T) + weight * common
        densities.append(np.log(len(g) / 150) + multivariate_normal(g.mean(axis=0), covariance).logpdf(queries))
    expected = -logsumexp(densities, axis=0)
    np.testing.assert_allclose(GMM(tied=tied).fit(batches).score(unseen).numpy(), expected, rtol=1e-5)


def test_without_labels_it_is_one_gaussian(unlabelled: list[Signals], fit_signals: Signals, unseen: Signals) -> None:
    estimate = LedoitWolf().fit(fit_signals["features.last"].numpy())
    expected = -multivariate_normal(estimate.location_, estimate.covariance_).logpdf(unseen["features.last"].numpy())
    got = GMM().fit(unlabelled).score(unseen).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert spearmanr(got, Mahalanobis().fit(unlabelled).score(unseen).numpy()).statistic > 0.9999


def test_it_sees_what_a_tied_covariance_does_not() -> None:
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(600) % 2
    width = torch.tensor([0.1, 3.0])[labels][:, None]
    rows = torch.tensor([[0.0, 0.0], [20.0, 0.0]])[labels] + width * torch.randn(600, 2, generator=generator)
    odd, usual = torch.tensor([[0.0, 2.0]]), rows[labels == 1][:50]
    fit = [{"features.last": rows, "label": labels}]
    mixture, tied = (d.fit(fit) for d in (GMM(), Mahalanobis()))
    assert float(mixture.score({"features.last": odd})) > float(mixture.score({"features.last": usual}).max())
    assert float(tied.score({"features.last": odd})) < float(tied.score({"features.last": usual}).max())


def test_known_failure_an_odd_image_inside_a_wide_class_is_likely() -> None:
    generator = torch.Generator().manual_seed(2)
    ring = torch.nn.functional.normalize(torch.randn(500, 2, generator=generator)) * 5
    fitted = GMM().fit([{"features.last": ring, "label": torch.zeros(500, dtype=torch.int64)}])
    assert float(fitted.score({"features.last": torch.zeros(1, 2)})) < float(fitted.score({"features.last": ring}).min())


def test_many_dimensions_do_not_underflow() -> None:
    generator = torch.Generator().manual_seed(3)
    rows, labels = torch.randn(60, 300, generator=generator), torch.arange(60) % 3
    fitted = GMM().fit([{"features.last": rows, "label": labels}])
    scores = fitted.score({"features.last": 1000 + torch.randn(5, 300, generator=generator)})
    assert bool(torch.isfinite(scores).all())
    assert len(scores.unique()) == 5


def test_a_class_with_one_member_has_the_tied_covariance(batches: list[Signals], unseen: Signals) -> None:
    first = {**batches[0], "label": batches[0]["label"].clone()}
    first["label"][0] = 999
    fitted = GMM(tied=0.5).fit([first, *batches[1:]])
    everything = GMM(tied=1.0).fit([first, *batches[1:]])
    torch.testing.assert_close(fitted.state["factors"][-1], everything.state["factors"][-1])
    assert bool(torch.isfinite(fitted.score(unseen)).all())


@pytest.mark.parametrize("wrong", [{"tied": 0.0}, {"tied": 1.1}, {"shrinkage": "no"}])
def test_parameters_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        GMM.from_params(wrong)
