"""The mixture's centres against what was planted and against scikit-learn, its score against the formula."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics.pairwise import cosine_similarity
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.anomaly_dino import AnomalyDINO
from offmap.score.dpmm import DPMM

Signals = dict[str, Tensor]


def draw(count: int, seed: int, kinds: int = 4, width: int = 8) -> Signals:
    """Maps whose patches are of a few kinds, with little noise."""
    rng = torch.Generator().manual_seed(seed)
    axes = torch.eye(width)[:kinds]
    which = torch.randint(kinds, (count, 12, 12), generator=rng)
    maps = 3.0 * axes[which] + 0.1 * torch.randn(count, 12, 12, width, generator=rng)
    return {"feature_map.a": maps.permute(0, 3, 1, 2)}


def unit(signals: Signals) -> np.ndarray:
    rows = signals["feature_map.a"].permute(0, 2, 3, 1).double().numpy()
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_the_planted_centres_are_found_as_by_k_means() -> None:
    fit, test = draw(8, 1), draw(3, 2)
    fitted = DPMM(components=12, concentration=1e-3).fit([fit])
    centres = fitted.state["centres"].double().numpy()
    known = KMeans(4, n_init=3, random_state=0).fit(unit(fit).reshape(-1, 8)).cluster_centers_
    assert float(cosine_similarity(known, centres).max(axis=1).min()) > 0.999
    expected = 1 - cosine_similarity(unit(test).reshape(-1, 8), centres).max(axis=1).reshape(3, 144)
    np.testing.assert_allclose(fitted.map(test).numpy().reshape(3, 144), expected, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(fitted.score(test).numpy(), np.sort(expected)[:, -2:].mean(axis=1), rtol=1e-3)


def test_the_prior_decides_how_many_centres_are_used() -> None:
    few = len(DPMM(components=40, concentration=1e-4).fit([draw(8, 1)]).state["centres"])
    assert 4 <= few < 40


def test_the_state_is_bounded_and_a_hundredth_of_a_bank() -> None:
    signals = [draw(30, s) for s in range(3)]
    centres = DPMM(components=20, pool=2000).fit(signals).state["centres"]
    bank = AnomalyDINO(max_bank=2000).fit(signals).state["bank"]
    assert len(centres) <= 20
    assert bank.numel() >= 100 * centres.numel()


def test_known_failure_a_rare_usual_kind_is_odd_to_centres_and_not_to_a_bank() -> None:
    fit = draw(8, 1)
    fit["feature_map.a"][0, :, 0, 0] = 3.0 * torch.eye(8)[7]
    rare = {"feature_map.a": fit["feature_map.a"][:1]}
    assert float(DPMM(components=4).fit([fit]).score(rare)) > 0.3
    assert float(AnomalyDINO().fit([fit]).score(rare)) < 1e-5


def test_copies_of_one_patch_and_other_channels_are_refused() -> None:
    with pytest.raises(SignalError, match="two different images"):
        DPMM().fit([{"feature_map.a": torch.ones(3, 4, 2, 2)}])
    with pytest.raises(SignalError, match="5 channels in layers a, 8"):
        DPMM(components=4).fit([draw(2, 1)]).score({"feature_map.a": torch.zeros(2, 5, 8, 8)})


@pytest.mark.parametrize("wrong", [{"components": 0}, {"pool": 10, "components": 11}, {"rounds": 0}, {"concentration": -1.0}, {"top": 0.0}])
def test_parameters_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=str(next(iter(wrong.values())))):
        DPMM.from_params(wrong)
