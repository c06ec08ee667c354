"""MaRS against its network written out in numpy, against scikit-learn's covariance, and against the linear form."""

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score._autoencoder import Plan, trained
from offmap.score.mars import MaRS

Signals = dict[str, Tensor]


def curve(count: int, seed: int, *, off: float = 0.0) -> Signals:
    """Points on a bent band in 12 dimensions; ``off``: lifted from it."""
    generator, fixed = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(4)
    along = 3.0 * torch.rand(count, 1, generator=generator, dtype=torch.float64) - 1.5
    flat = torch.cat([2.0 * along, along.square() + off, torch.sin(3 * along)], dim=1)
    turn = torch.linalg.qr(torch.randn(12, 12, generator=fixed, dtype=torch.float64)).Q[:3]
    noise = 0.05 * torch.randn(count, 12, generator=generator, dtype=torch.float64)
    return {"features.last": 5.0 + flat @ turn + noise}


def left_over(state: dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    z = (rows - state["mean"]) @ state["basis"] / state["scale"]
    width = len(state["code.weight"])
    code = z[:, :width] + np.tanh(z @ state["enter.weight"].T + state["enter.bias"]) @ state["code.weight"].T
    straight = np.concatenate([code, np.zeros((len(z), z.shape[1] - width))], axis=1)
    out = straight + np.tanh(code @ state["leave.weight"].T + state["leave.bias"]) @ state["out.weight"].T + state["out.bias"]
    return np.asarray(rows - (state["mean"] + state["scale"] * out @ state["basis"].T))


def test_it_equals_the_formula(batches: list[Signals], fit_signals: Signals, unseen: Signals) -> None:
    fitted = MaRS(steps=200).fit(batches)
    state = {name: value.numpy() for name, value in fitted.state.items()}
    fourth = np.arange(150) % 4 == 3
    residuals = left_over(state, fit_signals["features.last"].numpy()[~fourth])
    expected = LedoitWolf().fit(residuals).mahalanobis(left_over(state, unseen["features.last"].numpy()))
    np.testing.assert_allclose(fitted.score(unseen).numpy(), expected, rtol=1e-5)


def test_without_steps_it_is_the_linear_autoencoder(fit_signals: Signals, unseen: Signals) -> None:
    rows, code = fit_signals["features.last"].numpy(), 4
    fitted = MaRS(code=code, steps=0).fit([fit_signals], held_out=[unseen])
    vectors = np.linalg.svd(rows - rows.mean(axis=0))[2][code:]
    inside = np.eye(12) - vectors.T @ vectors

    def left(signals: Signals) -> np.ndarray:
        centred = signals["features.last"].numpy() - rows.mean(axis=0)
        return np.asarray(centred - centred @ inside)

    expected = LedoitWolf().fit(left(fit_signals)).mahalanobis(left(unseen))
    np.testing.assert_allclose(fitted.score(unseen).numpy(), expected, rtol=1e-5)


def test_a_bent_band_is_held_by_one_number_which_no_linear_code_does() -> None:
    usual, lifted = curve(200, 2), curve(200, 3, off=0.6)

    def area(bent: bool) -> float:
        fitted = (MaRS(code=1) if bent else MaRS(code=1, steps=0)).fit([curve(600, 1)])
        return float((fitted.score(lifted)[:, None] > fitted.score(usual)).double().mean())

    assert area(bent=True) > 0.9
    assert area(bent=False) < 0.75


def test_known_failure_a_shift_along_the_surface_leaves_nothing_over() -> None:
    fitted = MaRS(code=3, steps=0).fit([curve(300, 1)])
    far = {"features.last": (fitted.state["mean"] + 20.0 * fitted.state["basis"][:, 0])[None]}
    assert float(fitted.score(far)) < float(fitted.score(curve(50, 2)).median())


def test_training_never_ends_worse_on_unseen_rows_than_the_linear_start() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, unseen = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (10, 40))
    for steps in (0, 400):
        weights = trained(rows, unseen, Plan(3, 64, steps), torch.Generator().manual_seed(1))
        assert float(weights["out.weight"].abs().max()) == 0.0


def test_the_same_generator_gives_the_same_network_whatever_came_before(batches: list[Signals]) -> None:
    one = MaRS(steps=100).fit(batches, generator=torch.Generator().manual_seed(5)).state
    torch.manual_seed(123)
    with torch.no_grad():
        other = MaRS(steps=100).fit(batches, generator=torch.Generator().manual_seed(5)).state
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not any(value.requires_grad for value in one.values())


def test_the_images_to_fit_on_are_bounded(batches: list[Signals], unseen: Signals) -> None:
    fitted = MaRS(max_bank=8, steps=60).fit(batches)
    assert fitted.state["basis"].shape == (12, 7)
    assert bool(torch.isfinite(fitted.score(unseen)).all())


def test_too_few_images_or_none_that_differ_are_refused(fit_signals: Signals) -> None:
    with pytest.raises(SignalError, match="3 images to fit on and 0 unseen"):
        MaRS().fit([{"features.last": fit_signals["features.last"][:3]}])
    with pytest.raises(SignalError, match=r"features\.last does not vary"):
        MaRS().fit([{"features.last": torch.ones(20, 4)}])


@pytest.mark.parametrize("wrong", [{"code": 0}, {"hidden": 0}, {"steps": -1}, {"max_bank": 3}, {"shrinkage": "no"}])
def test_parameters_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        MaRS.from_params(wrong)
