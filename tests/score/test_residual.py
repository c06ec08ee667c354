"""Residual against PCA of scikit-learn and against the formula with the head's origin."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.residual import Residual

Signals = dict[str, Tensor]


def headless(batches: list[Signals]) -> list[Signals]:
    return [{"features.last": b["features.last"]} for b in batches]


@pytest.mark.parametrize("components", [1, 4, 11])
def test_about_the_mean_it_equals_pca(batches: list[Signals], fit_signals: Signals, unseen: Signals, components: int) -> None:
    pca = PCA(components).fit(fit_signals["features.last"].numpy())
    rows = unseen["features.last"].numpy()
    expected = np.linalg.norm(rows - pca.inverse_transform(pca.transform(rows)), axis=1)
    got = Residual(components=components).fit(headless(batches)).score(unseen)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5)


def test_the_fewest_components_that_hold_the_variance(batches: list[Signals], fit_signals: Signals) -> None:
    basis = Residual(variance=0.9).fit(headless(batches)).state["basis"]
    assert basis.shape[1] == PCA(0.9, svd_solver="full").fit(fit_signals["features.last"].numpy()).n_components_


def test_with_a_head_the_origin_is_where_logits_vanish(batches: list[Signals], fit_signals: Signals, unseen: Signals) -> None:
    weight, bias, rows = (fit_signals[k].numpy() for k in ("head.weight", "head.bias", "features.last"))
    origin = -np.linalg.pinv(weight) @ bias
    np.testing.assert_allclose(weight @ origin + bias, 0, atol=1e-12)
    second = (rows - origin).T @ (rows - origin) / len(rows)
    basis = np.linalg.svd(second)[0][:, :4]
    centred = unseen["features.last"].numpy() - origin
    expected = np.linalg.norm(centred - centred @ basis @ basis.T, axis=1)
    got = Residual(components=4).fit(batches).score(unseen)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5)


def test_a_head_of_another_width_is_not_used(batches: list[Signals], unseen: Signals) -> None:
    narrow = [{**b, "head.weight": b["head.weight"][:, :5]} for b in batches]
    assert torch.equal(Residual().fit(narrow).score(unseen), Residual().fit(headless(batches)).score(unseen))


def test_components_stay_below_images_and_dimensions(batches: list[Signals]) -> None:
    few = [{"features.last": batches[0]["features.last"][:5]}]
    assert Residual(components=100).fit(few).state["basis"].shape[1] == 4
    assert Residual(components=100).fit(batches).state["basis"].shape[1] == 11


def test_known_failure_a_shift_inside_the_subspace_is_not_seen(batches: list[Signals], unseen: Signals) -> None:
    fitted = Residual().fit(batches)
    inside = {"features.last": unseen["features.last"] + 1000 * fitted.state["basis"][:, 0]}
    torch.testing.assert_close(fitted.score(inside), fitted.score(unseen), rtol=1e-4, atol=1e-6)


def test_one_image_is_refused(batches: list[Signals]) -> None:
    with pytest.raises(SignalError, match="at least two"):
        Residual().fit([{"features.last": batches[0]["features.last"][:1]}])


@pytest.mark.parametrize("wrong", [{"components": 0}, {"variance": 0.0}, {"variance": 1.0}])
def test_parameters_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Residual.from_params(wrong)
