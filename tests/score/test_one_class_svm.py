"""The machine in tensors against scikit-learn's own decisions."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.svm import OneClassSVM as Machine
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.one_class_svm import OneClassSVM

Signals = dict[str, Tensor]


@pytest.mark.parametrize(("nu", "gamma"), [(0.05, None), (0.5, 0.3)])
def test_it_equals_scikit_learn(batches: list[Signals], fit_signals: Signals, unseen: Signals, nu: float, gamma: float | None) -> None:
    rows = fit_signals["features.last"].numpy()
    scale = gamma or 1 / (12 * rows.var(axis=0).mean())
    machine = Machine(nu=nu, gamma=scale).fit(rows - rows.mean(axis=0))
    fitted = OneClassSVM(nu=nu, gamma=gamma).fit(batches)
    for signals in (unseen, fit_signals):
        expected = -machine.decision_function(signals["features.last"].numpy() - rows.mean(axis=0))
        np.testing.assert_allclose(fitted.score(signals).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_wide_features_are_projected_like_pca(fit_signals: Signals, unseen: Signals) -> None:
    fitted = OneClassSVM(components=5, gamma=0.05, nu=0.2).fit([fit_signals])
    pca = PCA(5, svd_solver="full").fit(fit_signals["features.last"].numpy())
    machine = Machine(nu=0.2, gamma=0.05, tol=1e-3).fit(pca.transform(fit_signals["features.last"].numpy()))
    expected = -machine.decision_function(pca.transform(unseen["features.last"].numpy()))
    np.testing.assert_allclose(fitted.score(unseen).numpy(), expected, rtol=0.01, atol=0.02)


def test_about_a_share_nu_of_the_images_lies_outside(batches: list[Signals], fit_signals: Signals) -> None:
    outside = (OneClassSVM(nu=0.3, gamma=0.005).fit(batches).score(fit_signals) > 1e-3).double().mean()
    assert 0.2 < float(outside) <= 0.3 + 0.02


def test_known_failure_all_far_images_have_one_score(batches: list[Signals], unseen: Signals) -> None:
    fitted = OneClassSVM().fit(batches)
    far = fitted.score({"features.last": unseen["features.last"] + torch.linspace(1e3, 1e5, 60, dtype=torch.float64)[:, None]})
    assert len(far.unique()) == 1
    assert float(far[0]) == pytest.approx(float(fitted.state["rho"]))


def test_constant_columns_and_fewer_images_than_dimensions(unseen: Signals, fit_signals: Signals) -> None:
    rows = fit_signals["features.last"][:8].clone()
    rows[:, 2] = 5.0
    assert bool(torch.isfinite(OneClassSVM(components=4).fit([{"features.last": rows}]).score(unseen)).all())


def test_copies_of_one_image_are_refused(fit_signals: Signals) -> None:
    with pytest.raises(SignalError, match="do not vary"):
        OneClassSVM().fit([{"features.last": fit_signals["features.last"][:1].repeat(20, 1)}])


@pytest.mark.parametrize("wrong", [{"nu": 0.0}, {"nu": 1.5}, {"gamma": 0.0}, {"components": -1}, {"max_bank": 1}])
def test_parameters_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        OneClassSVM.from_params(wrong)
