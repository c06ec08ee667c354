"""Kernel density against the sum of scipy's densities, and scikit-learn where its trees are exact (few dimensions)."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import norm
from sklearn.decomposition import PCA
from sklearn.neighbors import KernelDensity
from sklearn.preprocessing import normalize
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.kde import KDE

Signals = dict[str, Tensor]


@pytest.mark.parametrize(("components", "bandwidth"), [(1, None), (4, None), (12, 0.2)])
def test_it_equals_scikit_learn(
    batches: list[Signals], fit_signals: Signals, unseen: Signals, components: int, bandwidth: float | None
) -> None:
    pca = PCA(components, whiten=True, svd_solver="full").fit(normalize(fit_signals["features.last"].numpy()))
    rows, queries = (pca.transform(normalize(s["features.last"].numpy())) for s in (fit_signals, unseen))
    width = bandwidth or 150 ** (-1 / (components + 4))
    expected = -logsumexp(norm.logpdf(queries[:, None], rows[None], width).sum(axis=-1), axis=1) + np.log(150)
    if components < 12:
        np.testing.assert_allclose(expected, -KernelDensity(bandwidth=width).fit(rows).score_samples(queries), rtol=1e-6)
    got = KDE(components=components, bandwidth=bandwidth).fit(batches).score(unseen)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_trap_far_images_do_not_underflow(batches: list[Signals], unseen: Signals) -> None:
    fitted = KDE(bandwidth=1e-3).fit(batches)
    scores = fitted.score({"features.last": -unseen["features.last"]})
    assert bool(torch.isfinite(scores).all())
    assert len(scores.unique()) == 60


def test_a_gap_between_two_groups_is_seen() -> None:
    generator = torch.Generator().manual_seed(4)
    side = torch.tensor([[3.0, 1.0, 0.0], [3.0, -1.0, 0.0]])
    rows = side[torch.arange(200) % 2] + 0.1 * torch.randn(200, 3, generator=generator)
    fitted = KDE(components=1).fit([{"features.last": rows}])
    assert float(fitted.score({"features.last": torch.tensor([[3.0, 0.0, 0.0]])})) > float(
        fitted.score({"features.last": rows}).quantile(0.99)
    )


def test_known_failure_a_shift_outside_the_components_is_not_seen() -> None:
    generator = torch.Generator().manual_seed(5)
    rows = torch.tensor([10.0, 0, 0]) + torch.randn(200, 3, generator=generator) * torch.tensor([0.0, 2.0, 0.01])
    odd = rows[:20] + torch.tensor([0.0, 0.0, 1.0])
    fit = [{"features.last": rows}]
    blind, seeing = KDE(components=1).fit(fit), KDE(components=3).fit(fit)
    assert float((blind.score({"features.last": odd}) - blind.score({"features.last": rows[:20]})).abs().max()) < 1.0
    assert float((seeing.score({"features.last": odd}) - seeing.score({"features.last": rows[:20]})).min()) > 100


def test_components_that_do_not_vary_are_left_out(fit_signals: Signals, unseen: Signals) -> None:
    flat = torch.cat([fit_signals["features.last"][:, :3], torch.zeros(150, 5, dtype=torch.float64)], dim=1)
    fitted = KDE().fit([{"features.last": flat}])
    assert fitted.state["axes"].shape == (8, 3)
    few = KDE(components=64).fit([{"features.last": fit_signals["features.last"][:5]}])
    assert few.state["axes"].shape[1] == 4
    assert bool(torch.isfinite(few.score(unseen)).all())


def test_copies_of_one_image_are_refused(fit_signals: Signals) -> None:
    with pytest.raises(SignalError, match="do not vary"):
        KDE().fit([{"features.last": fit_signals["features.last"][:1].repeat(20, 1)}])


@pytest.mark.parametrize("wrong", [{"components": 0}, {"components": 65}, {"bandwidth": 0.0}, {"max_bank": 1}])
def test_parameters_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        KDE.from_params(wrong)
