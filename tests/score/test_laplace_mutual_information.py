"""Laplace mutual information against whole matrices, its limits, and what it adds to the entropy."""

import numpy as np
import pytest
import torch
from tests.score import laplace
from tests.score.conftest import cut, mixture
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.score.laplace_entropy import LaplaceEntropy
from offmap.score.laplace_mutual_information import LaplaceMutualInformation

Signals = dict[str, Tensor]


def test_it_equals_whole_matrices() -> None:
    small, new = mixture(80, 5, seed=1), mixture(10, 5, seed=2)
    fitted = LaplaceMutualInformation(samples=7, precision=0.3).fit(cut(small, 30))
    p = laplace.probabilities(small, new, 0.3, fitted.state["noise"].numpy())
    expected = laplace.entropy(p.mean(axis=1)) - laplace.entropy(p).mean(axis=1)
    np.testing.assert_allclose(fitted.score(new).numpy(), expected, rtol=1e-4, atol=1e-9)


def test_an_endless_precision_leaves_nothing_to_disagree_about(batches: list[Signals], unseen: Signals) -> None:
    assert float(LaplaceMutualInformation(precision=1e14).fit(batches).score(unseen).max()) < 1e-9


def test_it_is_at_least_zero_and_at_most_the_entropy(batches: list[Signals], unseen: Signals) -> None:
    information, entropy = (detector.fit(batches).score(unseen) for detector in (LaplaceMutualInformation(), LaplaceEntropy()))
    assert bool(((information >= 0) & (information <= entropy + 1e-6)).all())


def test_it_tells_doubt_between_classes_from_doubt_about_the_head() -> None:
    """Midway between two classes, where there are many images, entropy is large and heads agree."""
    rng = torch.Generator().manual_seed(0)
    rows = torch.cat([torch.randn(4000, 1, generator=rng), 0.01 * torch.randn(4000, 1, generator=rng)], dim=1).double()
    signals = {"features.penultimate": rows, "head.weight": torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).double()}
    signals["head.bias"] = torch.zeros(2).double()
    new = {"features.penultimate": torch.tensor([[0.0, 0.0], [0.0, 3.0]]).double()}
    midway, foreign = LaplaceMutualInformation().fit([signals]).score(new).tolist()
    assert LaplaceEntropy().fit([signals]).score(new).tolist() == pytest.approx([np.log(2)] * 2, rel=1e-2)
    assert midway < 1e-2 < 0.1 < foreign


def test_known_failure_few_samples_miss_disagreement_far_away(batches: list[Signals], unseen: Signals) -> None:
    distant = {**unseen, "features.penultimate": unseen["features.penultimate"].roll(5, dims=1) * 1e3}
    few, many = (LaplaceMutualInformation(samples=s).fit(batches).score(distant).mean() for s in (2, 500))
    assert float(few) < float(many)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="laplace_mutual_information: samples = 2000 must be between 2 and 1000"):
        LaplaceMutualInformation(samples=2000)
    with pytest.raises(ConfigError, match=r"laplace_mutual_information: precision = 0\.0 must be greater than 0"):
        LaplaceMutualInformation(precision=0.0)
