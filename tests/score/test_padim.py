"""PaDiM against its formula position by position, scipy, and what it cannot stand."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from torch import Tensor
from torch.nn import functional

from offmap.core.errors import ConfigError, SignalError
from offmap.score.padim import PaDiM

Signals = dict[str, Tensor]
SHAPES = {"one": (3, 16), "two": (5, 8), "three": (6, 4), "four": (7, 2)}


def draw(count: int, seed: int) -> Signals:
    rng = torch.Generator().manual_seed(seed)
    return {f"feature_map.{n}": 2.0 + torch.randn(count, c, s, s, generator=rng) for n, (c, s) in SHAPES.items()}


def stacked(signals: Signals) -> np.ndarray:
    """Layers two and three on the grid of two, (N, 8, 8, 11)."""
    parts = [
        functional.interpolate(signals[f"feature_map.{n}"], size=(8, 8), mode="bilinear", align_corners=False) for n in ("two", "three")
    ]
    return torch.cat(parts, dim=1).permute(0, 2, 3, 1).double().numpy()


def gaussian(rows: np.ndarray, ridge: float) -> np.ndarray:
    """Covariance with the weight of Chen et al. 2010, eq. 23."""
    count, width = rows.shape
    cov = np.cov(rows.T)
    trace, square, free = np.trace(cov), np.trace(cov @ cov), count - 1
    weight = min(1.0, ((1 - 2 / width) * square + trace**2) / ((free + 1 - 2 / width) * (square - trace**2 / width)))
    return (1 - weight) * cov + (weight * trace / width + ridge) * np.eye(width)


def test_every_position_has_its_own_mahalanobis_distance() -> None:
    fit, test = draw(40, 1), draw(4, 2)
    rows, unseen = stacked(fit), stacked(test)
    scale = np.sqrt(rows.var(axis=0, ddof=1).mean(axis=(0, 1)))
    expected = np.empty((4, 8, 8))
    for i, j in np.ndindex(8, 8):
        inverse = np.linalg.inv(gaussian(rows[:, i, j] / scale, 0.01))
        mean = rows[:, i, j].mean(axis=0) / scale
        expected[:, i, j] = [mahalanobis(x / scale, mean, inverse) for x in unseen[:, i, j]]
    fitted = PaDiM(channels=50).fit([{k: v[:7] for k, v in fit.items()}, {k: v[7:] for k, v in fit.items()}])
    np.testing.assert_allclose(fitted.map(test).numpy(), expected, rtol=1e-4)
    np.testing.assert_allclose(fitted.score(test).numpy(), expected.reshape(4, -1).max(axis=1), rtol=1e-4)


def test_channels_are_chosen_by_the_seed_alone() -> None:
    fit, test = draw(30, 1), draw(3, 2)
    one, same, other = (
        PaDiM(channels=4, seed=s).fit([fit], generator=torch.Generator().manual_seed(g)) for s, g in ((0, 1), (0, 2), (1, 1))
    )
    assert torch.equal(one.map(test), same.map(test))
    assert one.state["channels"].tolist() != other.state["channels"].tolist()
    assert len(set(one.state["channels"].tolist())) == 4
    few = PaDiM(channels=4).fit([fit]).state["channels"].numpy()
    rows = stacked(fit)[..., few]
    np.testing.assert_allclose(one.state["means"].reshape(8, 8, 4).numpy(), rows.mean(axis=0), rtol=1e-5)


def test_the_state_does_not_grow_with_the_images() -> None:
    sizes = [sum(t.numel() for t in PaDiM(channels=6).fit([draw(n, 1)]).state.values()) for n in (3, 60)]
    assert sizes[0] == sizes[1]


def test_known_failure_a_usual_part_out_of_its_place_is_odd() -> None:
    rng = torch.Generator().manual_seed(0)
    left = torch.zeros(50, 4, 6, 6)
    left[..., :3] = 3.0
    fit = {"feature_map.a": left + 0.1 * torch.randn(left.shape, generator=rng)}
    mirrored = {"feature_map.a": fit["feature_map.a"][:5].flip(-1)}
    fitted = PaDiM().fit([fit])
    assert float(fitted.score(mirrored).min()) > 5 * float(fitted.score(fit).max())


def test_volumes_work_and_layers_can_be_named() -> None:
    volumes = {"feature_map.a": torch.randn(5, 4, 3, 5, 5, generator=torch.Generator().manual_seed(0))}
    assert tuple(PaDiM().fit([volumes]).map(volumes).shape) == (5, 3, 5, 5)
    assert PaDiM(layers=("four",)).needs == {"feature_map.four"}
    assert tuple(PaDiM(layers=("four",)).fit([draw(9, 1)]).map(draw(2, 2)).shape) == (2, 2, 2)


def test_one_image_and_other_channels_are_refused() -> None:
    with pytest.raises(SignalError, match="two different images"):
        PaDiM().fit([draw(1, 1)])
    with pytest.raises(SignalError, match="9 channels in layers two, 5"):
        PaDiM(layers=("two",)).fit([draw(3, 1)]).score({"feature_map.two": torch.zeros(2, 9, 8, 8)})


@pytest.mark.parametrize("wrong", [{"channels": 0}, {"channels": 1001}, {"ridge": 0.0}, {"ridge": 1.5}, {"seed": -1}])
def test_parameters_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=str(next(iter(wrong.values())))):
        PaDiM.from_params(wrong)
