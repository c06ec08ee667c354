"""Relative Mahalanobis against the formula; needs two classes."""

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor

from offmap.core.errors import SignalError
from offmap.score.mahalanobis import Mahalanobis
from offmap.score.relative_mahalanobis import RelativeMahalanobis

Signals = dict[str, Tensor]


def test_it_equals_the_difference_of_two_distances(batches: list[Signals], fit_signals: Signals, unseen: Signals) -> None:
    background = LedoitWolf().fit(fit_signals["features.last"].numpy()).mahalanobis(unseen["features.last"].numpy())
    expected = Mahalanobis().fit(batches).score(unseen).numpy() - background
    got = RelativeMahalanobis().fit(batches).score(unseen).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_it_may_be_negative(batches: list[Signals], fit_signals: Signals) -> None:
    assert float(RelativeMahalanobis().fit(batches).score(fit_signals).min()) < 0


@pytest.mark.parametrize("shrinkage", ["ledoit_wolf", "oas"])
def test_one_class_is_refused(batches: list[Signals], shrinkage: str) -> None:
    single = [{**b, "label": torch.zeros_like(b["label"])} for b in batches]
    with pytest.raises(SignalError, match="two classes or more"):
        RelativeMahalanobis.from_params({"shrinkage": shrinkage}).fit(single)


def test_batches_without_labels_are_refused(unlabelled: list[Signals]) -> None:
    with pytest.raises(SignalError, match="needs the signals label"):
        RelativeMahalanobis().fit(unlabelled)


def test_known_failure_a_shift_common_to_all_classes_cancels() -> None:
    generator = torch.Generator().manual_seed(6)
    labels = torch.arange(3000) % 3
    rows = torch.randn(3000, 6, generator=generator, dtype=torch.float64)
    rows[:, :3] += 6.0 * torch.eye(3, dtype=torch.float64)[labels]
    shifted = rows[:300].clone()
    shifted[:, 5] += 4.0
    fit = [{"features.last": rows, "label": labels}]
    usual, other = {"features.last": rows[:300]}, {"features.last": shifted}
    plain, relative = Mahalanobis().fit(fit), RelativeMahalanobis().fit(fit)
    assert float(plain.score(other).median()) > 2 * float(plain.score(usual).median())
    assert abs(float(relative.score(other).median() - relative.score(usual).median())) < 0.5
