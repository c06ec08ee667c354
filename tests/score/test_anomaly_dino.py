"""AnomalyDINO against scikit-learn and its formula, its bound, and on the patch tokens of a transformer."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_distances
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.anomaly_dino import AnomalyDINO

Signals = dict[str, Tensor]
SHAPES = {"one": (3, 24), "two": (5, 12), "three": (6, 6)}


def draw(count: int, seed: int) -> Signals:
    rng = torch.Generator().manual_seed(seed)
    return {f"feature_map.{n}": torch.randn(count, c, s, s, generator=rng) for n, (c, s) in SHAPES.items()}


def patches(signals: Signals, layer: str) -> np.ndarray:
    return signals[f"feature_map.{layer}"].permute(0, 2, 3, 1).double().numpy()


def test_with_a_whole_bank_it_equals_scikit_learn() -> None:
    fit, test = draw(6, 1), draw(4, 2)
    rows, bank = patches(test, "two"), patches(fit, "two").reshape(-1, 5)
    expected = cosine_distances(rows.reshape(-1, 5), bank).min(axis=1).reshape(4, 144)
    fitted = AnomalyDINO(layers=("two",)).fit([{k: v[:4] for k, v in fit.items()}, {k: v[4:] for k, v in fit.items()}])
    np.testing.assert_allclose(fitted.map(test).numpy().reshape(4, 144), expected, rtol=1e-4, atol=1e-7)
    highest = np.sort(expected, axis=1)[:, ::-1]
    np.testing.assert_allclose(fitted.score(test).numpy(), highest[:, :2].mean(axis=1), rtol=1e-4)
    most = AnomalyDINO(layers=("two",), top=0.25).fit([fit]).score(test)
    np.testing.assert_allclose(most.numpy(), highest[:, :36].mean(axis=1), rtol=1e-4)


def test_a_copy_has_0_and_an_opposite_patch_2() -> None:
    one = {"feature_map.a": torch.ones(2, 3, 2, 2)}
    fitted = AnomalyDINO().fit([one])
    assert fitted.score(one).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert fitted.score({"feature_map.a": -one["feature_map.a"]}).tolist() == pytest.approx([2, 2])


def test_the_deepest_map_that_is_fine_enough_is_read_unless_named() -> None:
    def read(signals: Signals) -> str:
        return next(n for n in AnomalyDINO().fit([signals]).state if n.startswith("layer."))

    assert read(draw(3, 1)) == "layer.00.two"
    assert read({k: v for k, v in draw(3, 1).items() if "three" in k}) == "layer.00.three"
    same = {f"feature_map.{i}": torch.ones(2, 3, 4, 4) for i in "abc"}
    assert read(same) == "layer.00.c"


def test_the_bank_has_a_hard_cap() -> None:
    fitted = AnomalyDINO(max_bank=50).fit([draw(5, s) for s in range(4)])
    assert tuple(fitted.state["bank"].shape) == (50, 5)


def test_known_failure_length_and_place_are_not_seen() -> None:
    fit = draw(6, 1)
    fitted = AnomalyDINO().fit([fit])
    moved = {k: 100 * v.flip(-1) for k, v in fit.items()}
    assert float(fitted.score(moved).max()) < 1e-5


def test_patch_tokens_of_a_transformer_are_read(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tests.represent.test_hub import MODELS, drawn, images, saved

    from offmap.represent.hub import HubEncoder

    encoder = HubEncoder.open(str(saved(drawn(MODELS["dinov2"][0]()), tmp_path)))
    signals = encoder.encode(images(6), AnomalyDINO().needs)
    fitted = AnomalyDINO().fit([signals])
    assert "layer.00.final" in fitted.state
    assert tuple(fitted.map(signals).shape) == (6, 4, 4)
    assert float(fitted.score(signals).max()) < 1e-5
    assert float(fitted.score(encoder.encode(images(3).flip(1) ** 3, AnomalyDINO().needs)).min()) > 1e-4


def test_other_channels_are_refused() -> None:
    with pytest.raises(SignalError, match="9 channels in layers two, 5"):
        AnomalyDINO().fit([draw(3, 1)]).score({"feature_map.two": torch.zeros(2, 9, 8, 8)})


@pytest.mark.parametrize("wrong", [{"max_bank": 0}, {"top": 0.0}, {"top": 1.5}])
def test_parameters_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=str(next(iter(wrong.values())))):
        AnomalyDINO.from_params(wrong)
