"""The forest in tensors against scikit-learn's own scores."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest as Forest
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.score.isolation_forest import IsolationForest

Signals = dict[str, Tensor]


def seed_of(generator: torch.Generator, count: int) -> int:
    """The seed that fitting draws after the keys of its sample."""
    torch.rand(count, dtype=torch.float64, generator=generator)
    return int(torch.randint(2**31 - 1, (), generator=generator))


@pytest.mark.parametrize(("trees", "max_samples"), [(100, 256), (7, 20), (1, 2)])
def test_it_equals_scikit_learn(batches: list[Signals], fit_signals: Signals, unseen: Signals, trees: int, max_samples: int) -> None:
    forest = Forest(n_estimators=trees, max_samples=min(max_samples, 150), random_state=seed_of(torch.Generator().manual_seed(4), 150)).fit(
        fit_signals["features.last"].numpy()
    )
    detector = IsolationForest(trees=trees, max_samples=max_samples)
    fitted = detector.fit([fit_signals], generator=torch.Generator().manual_seed(4))
    for signals in (unseen, fit_signals):
        expected = -forest.score_samples(signals["features.last"].numpy())
        np.testing.assert_allclose(fitted.score(signals).numpy(), expected, rtol=0, atol=1e-6)
    cut = detector.fit(batches, generator=torch.Generator().manual_seed(4))
    assert torch.equal(cut.score(unseen), fitted.score(unseen))


def test_wide_features_are_projected_like_pca(fit_signals: Signals, unseen: Signals) -> None:
    fitted = IsolationForest(components=5).fit([fit_signals])
    pca = PCA(5).fit(fit_signals["features.last"].numpy())
    basis = fitted.state["basis"].numpy()
    np.testing.assert_allclose(basis @ basis.T, pca.components_.T @ pca.components_, atol=1e-9)
    rows = (fit_signals["features.last"].numpy() - pca.mean_) @ basis
    forest = Forest(n_estimators=100, max_samples=150, random_state=seed_of(torch.Generator().manual_seed(0), 150)).fit(rows)
    expected = -forest.score_samples((unseen["features.last"].numpy() - pca.mean_) @ basis)
    np.testing.assert_allclose(fitted.score(unseen).numpy(), expected, rtol=0, atol=1e-6)


def test_the_seed_decides(batches: list[Signals], unseen: Signals) -> None:
    one, two = (IsolationForest().fit(batches, generator=torch.Generator().manual_seed(s)).score(unseen) for s in (1, 2))
    assert not torch.equal(one, two)


def test_known_failure_an_odd_combination_of_usual_values_is_hardly_seen() -> None:
    generator = torch.Generator().manual_seed(8)
    common = torch.randn(500, 1, generator=generator)
    rows = torch.cat([common + 0.05 * torch.randn(500, 1, generator=generator) for _ in range(2)], dim=1)
    odd = {"features.last": torch.tensor([[0.5, -0.5]])}
    forest = IsolationForest(components=0).fit([{"features.last": rows}])
    assert float(forest.score(odd)) < float(forest.score({"features.last": rows}).quantile(0.9))


@pytest.mark.parametrize("wrong", [{"trees": 0}, {"max_samples": 1}, {"components": -1}, {"max_bank": 1}])
def test_parameters_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        IsolationForest.from_params(wrong)
