"""COPOD against counting, one number at a time, and against ECOD."""

import numpy as np
import pytest
import torch
from scipy.stats import skew
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.score.copod import COPOD
from offmap.score.ecod import ECOD

Signals = dict[str, Tensor]


def naive(rows: np.ndarray, image: np.ndarray, combine: str) -> float:
    left, right, skewed, larger = 0.0, 0.0, 0.0, 0.0
    for j in range(rows.shape[1]):
        u = -np.log((1 + sum(x <= image[j] for x in rows[:, j])) / (len(rows) + 1))
        v = -np.log((1 + sum(x >= image[j] for x in rows[:, j])) / (len(rows) + 1))
        w = u if skew(rows[:, j]) < 0 else v
        left, right, skewed, larger = left + u, right + v, skewed + w, larger + max(w, (u + v) / 2)
    return float(max(left, right, skewed) if combine == "sum" else larger)


@pytest.mark.parametrize("combine", ["dimension", "sum"])
def test_it_equals_counting(batches: list[Signals], fit_signals: Signals, unseen: Signals, combine: str) -> None:
    rows, queries = (s["features.last"].float().numpy() for s in (fit_signals, unseen))
    fitted = COPOD.from_params({"combine": combine}).fit(batches)
    for signals, images in ((unseen, queries), (fit_signals, rows)):
        expected = [naive(rows, image, combine) for image in images[:40]]
        np.testing.assert_allclose(fitted.score(signals)[:40].numpy(), expected, rtol=1e-5)


def test_as_printed_it_is_ecod(batches: list[Signals], unseen: Signals) -> None:
    torch.testing.assert_close(COPOD(combine="sum").fit(batches).score(unseen), ECOD().fit(batches).score(unseen))


def test_a_strictly_growing_change_of_each_dimension_changes_no_tail(fit_signals: Signals, unseen: Signals) -> None:
    left = {"features.last": -fit_signals["features.last"].exp()}
    fitted = COPOD().fit([left])
    assert bool(fitted.state["left"].all())
    ranks = {"features.last": left["features.last"] * 3.0 - 1.0}
    moved = COPOD().fit([ranks]).score({"features.last": -unseen["features.last"].exp() * 3.0 - 1.0})
    torch.testing.assert_close(moved, fitted.score({"features.last": -unseen["features.last"].exp()}))


def test_known_failure_the_short_tail_of_a_skewed_dimension_hardly_counts() -> None:
    rows = torch.rand(2000, 1, generator=torch.Generator().manual_seed(3)).pow(3)
    fitted = COPOD().fit([{"features.last": rows}])
    low, high = fitted.score({"features.last": torch.tensor([[-5.0], [6.0]])}).tolist()
    assert low == pytest.approx(high / 2)
    assert high == pytest.approx(np.log(2001))


def test_known_failure_an_odd_combination_of_usual_values_is_not_seen() -> None:
    generator = torch.Generator().manual_seed(8)
    common = torch.randn(500, 1, generator=generator)
    rows = torch.cat([common + 0.05 * torch.randn(500, 1, generator=generator) for _ in range(2)], dim=1)
    fitted = COPOD().fit([{"features.last": rows}])
    assert float(fitted.score({"features.last": torch.tensor([[0.5, -0.5]])})) < float(fitted.score({"features.last": rows}).median())


def test_the_bank_is_bounded(batches: list[Signals]) -> None:
    assert COPOD(max_bank=30).fit(batches).state["sorted"].shape == (12, 30)


@pytest.mark.parametrize(("wrong", "message"), [({"max_bank": 1}, "max_bank = 1"), ({"combine": "mean"}, "combine")])
def test_parameters_out_of_range_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        COPOD.from_params(wrong)
