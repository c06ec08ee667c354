"""PatchCore against its steps written out, and what it forgets."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch.nn import functional

from offmap.core.errors import ConfigError, SignalError
from offmap.score.patchcore import PatchCore

Signals = dict[str, Tensor]
SHAPES = {"one": (3, 16), "two": (5, 8), "three": (6, 4), "four": (7, 2)}


def draw(count: int, seed: int) -> Signals:
    generator = torch.Generator().manual_seed(seed)
    return {f"feature_map.{n}": torch.randn(count, c, s, s, generator=generator) for n, (c, s) in SHAPES.items()}


def patches(signals: Signals, layers: tuple[str, ...]) -> np.ndarray:
    """Averages over 3 x 3 neighbours inside the map, enlarged to the first layer's grid, one row a position."""
    side, stacked = SHAPES[layers[0]][1], []
    for layer in layers:
        maps = signals[f"feature_map.{layer}"]
        padded = functional.pad(maps, (1, 1, 1, 1))
        inside = functional.pad(torch.ones_like(maps), (1, 1, 1, 1))
        shifts = [(i, j) for i in range(3) for j in range(3)]
        size = maps.shape[-1]
        total = sum(padded[:, :, i : i + size, j : j + size] for i, j in shifts)
        number = sum(inside[:, :, i : i + size, j : j + size] for i, j in shifts)
        stacked.append(functional.interpolate(total / number, size=(side, side), mode="bilinear", align_corners=False))
    return torch.cat(stacked, dim=1).permute(0, 2, 3, 1).reshape(len(stacked[0]), side * side, -1).numpy()


def test_with_a_whole_bank_it_equals_scikit_learn() -> None:
    fit, test = draw(6, 1), draw(4, 2)
    bank = patches(fit, ("two", "three")).reshape(-1, 11)
    rows = patches(test, ("two", "three"))
    expected = NearestNeighbors(n_neighbors=1).fit(bank).kneighbors(rows.reshape(-1, 11))[0].reshape(4, 8, 8)
    fitted = PatchCore().fit([{k: v[:4] for k, v in fit.items()}, {k: v[4:] for k, v in fit.items()}])
    np.testing.assert_allclose(fitted.map(test).numpy(), expected, rtol=1e-4)
    np.testing.assert_allclose(fitted.score(test).numpy(), expected.reshape(4, -1).max(axis=1), rtol=1e-4)


def test_the_reweighted_score_equals_equation_seven() -> None:
    fit, test = draw(6, 1), draw(4, 2)
    bank, rows = patches(fit, ("two", "three")).reshape(-1, 11), patches(test, ("two", "three"))
    got = PatchCore(reweight=9).fit([fit]).score(test).numpy()
    for i in range(4):
        every = np.linalg.norm(rows[i][:, None] - bank[None], axis=2)
        at = every.min(axis=1).argmax()
        star = every[at].argmin()
        around = np.argsort(np.linalg.norm(bank - bank[star], axis=1))[:9]
        weight = 1 - np.exp(every[at, star]) / np.exp(np.linalg.norm(rows[i][at] - bank[around], axis=1)).sum()
        assert got[i] == pytest.approx(weight * every[at, star], rel=1e-4)


def test_layers_are_the_second_and_third_deepest_unless_named() -> None:
    names = {n.split(".", 2)[2] for n in PatchCore().fit([draw(3, 1)]).state if n.startswith("layer.")}
    assert names == {"two", "three"}
    few = {k: v for k, v in draw(3, 1).items() if "three" not in k and "four" not in k}
    assert {n.split(".", 2)[2] for n in PatchCore().fit([few]).state if n.startswith("layer.")} == {"one", "two"}
    named = PatchCore(layers=("four",))
    assert named.needs == {"feature_map.four"}
    assert tuple(named.fit([draw(3, 1)]).map(draw(2, 2)).shape) == (2, 2, 2)


def test_the_bank_is_bounded_and_covers_better_than_chance() -> None:
    fit = draw(20, 1)
    every = torch.from_numpy(patches(fit, ("two", "three")).reshape(-1, 11))
    small = PatchCore(max_bank=60, pool=1280).fit([fit]).state["bank"]
    assert tuple(small.shape) == (60, 11)
    chance = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(0))[:60]]
    reach = [float(torch.cdist(every, bank).min(dim=1).values.max()) for bank in (small, chance)]
    assert reach[0] < 0.9 * reach[1]
    assert PatchCore(max_bank=60, pool=100, projection=4).fit([fit]).state["bank"].shape == (60, 11)


def test_known_failure_usual_parts_in_an_odd_place_are_not_seen() -> None:
    fit = draw(6, 1)
    fitted = PatchCore(layers=("two",)).fit([fit])
    turned = {"feature_map.two": fit["feature_map.two"].flip(-1)}
    assert float(fitted.score(turned).max()) < 0.7 * float(fitted.score(draw(6, 2)).min())


def test_volumes_work() -> None:
    def volumes(seed: int) -> Signals:
        return {"feature_map.a": torch.randn(3, 4, 3, 5, 5, generator=torch.Generator().manual_seed(seed))}

    fitted = PatchCore().fit([volumes(1)])
    assert tuple(fitted.map(volumes(2)).shape) == (3, 3, 5, 5)


def test_other_channels_and_vectors_are_refused() -> None:
    fitted = PatchCore(layers=("two",)).fit([draw(3, 1)])
    with pytest.raises(SignalError, match=r"9 channels in layers two, 5"):
        fitted.score({"feature_map.two": torch.zeros(2, 9, 8, 8)})
    with pytest.raises(SignalError, match="one to three spatial axes"):
        fitted.score({"feature_map.two": torch.zeros(2, 9)})


@pytest.mark.parametrize(
    "wrong", [{"max_bank": 0}, {"pool": 10, "max_bank": 11}, {"projection": 0}, {"reweight": 1}, {"reweight": -2}, {"reweight": 2001}]
)
def test_parameters_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        PatchCore.from_params(wrong)
