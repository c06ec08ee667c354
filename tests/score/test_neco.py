"""NECO against PCA of scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.neco import NECO

Signals = dict[str, Tensor]


def ratio(fit: Signals, queries: Signals, variance: float) -> np.ndarray:
    scaler = StandardScaler().fit(fit["features.last"].numpy())
    rows, test = (scaler.transform(s["features.last"].numpy()) for s in (fit, queries))
    pca = PCA(variance, svd_solver="full").fit(rows)
    return np.asarray(np.linalg.norm(test @ pca.components_.T, axis=1) / np.linalg.norm(test, axis=1))


@pytest.mark.parametrize("variance", [0.5, 0.9])
def test_it_equals_scikit_learn(batches: list[Signals], fit_signals: Signals, unseen: Signals, variance: float) -> None:
    got = NECO(variance=variance).fit(batches).score(unseen)
    np.testing.assert_allclose(got.numpy(), -ratio(fit_signals, unseen, variance), rtol=1e-5)


def test_with_logits_it_is_multiplied(batches: list[Signals], fit_signals: Signals, unseen: Signals) -> None:
    fit = [{**b, "logits": b["logits"] + 50} for b in batches]
    fitted = NECO(logits=True).fit(fit)
    expected = -ratio(fit_signals, unseen, 0.9) * (unseen["logits"].numpy().max(axis=1) + 50)
    np.testing.assert_allclose(fitted.score({**unseen, "logits": unseen["logits"] + 50}).numpy(), expected, rtol=1e-5)
    assert fitted.detector.needs == {"features.last", "logits"}


def test_trap_negative_logits_turn_the_order_round_and_are_refused(batches: list[Signals]) -> None:
    with pytest.raises(SignalError, match=r"150 of 150 .* set logits = false"):
        NECO(logits=True).fit([{**b, "logits": b["logits"] - 1000} for b in batches])


def test_known_failure_a_shift_inside_the_subspace_looks_usual(batches: list[Signals], unseen: Signals) -> None:
    fitted = NECO().fit(batches)
    inside = unseen["features.last"] + 1000 * fitted.state["basis"][:, 0] * fitted.state["scale"]
    assert float(fitted.score({"features.last": inside}).max()) < float(fitted.score(unseen).min()) + 0.05
    assert float(fitted.score({"features.last": inside}).max()) < -0.99


def test_the_mean_itself_and_a_constant_dimension_give_finite_scores(batches: list[Signals], fit_signals: Signals) -> None:
    rows = fit_signals["features.last"].clone()
    rows[:, 3] = 7.0
    fitted = NECO().fit([{"features.last": rows}])
    assert bool(torch.isfinite(fitted.score({"features.last": fitted.state["mean"][None]})).all())
    assert bool(torch.isfinite(fitted.score({"features.last": rows})).all())


def test_fewer_images_than_dimensions(batches: list[Signals]) -> None:
    few = {"features.last": batches[0]["features.last"][:4]}
    assert NECO(variance=0.99).fit([few]).state["basis"].shape[1] <= 3


@pytest.mark.parametrize("variance", [0.0, 1.0])
def test_parameters_out_of_range_are_refused(variance: float) -> None:
    with pytest.raises(ConfigError):
        NECO.from_params({"variance": variance})
