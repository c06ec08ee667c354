"""ECOD against counting, one number at a time."""

import numpy as np
import pytest
import torch
from scipy.stats import skew
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.score.ecod import ECOD, skewness, tails

Signals = dict[str, Tensor]


def naive(rows: np.ndarray, image: np.ndarray) -> float:
    left, right, skewed = 0.0, 0.0, 0.0
    for j in range(rows.shape[1]):
        below = -np.log((1 + sum(x <= image[j] for x in rows[:, j])) / (len(rows) + 1))
        above = -np.log((1 + sum(x >= image[j] for x in rows[:, j])) / (len(rows) + 1))
        left, right = left + below, right + above
        skewed += below if skew(rows[:, j]) < 0 else above
    return float(max(left, right, skewed))


def test_it_equals_counting(batches: list[Signals], fit_signals: Signals, unseen: Signals) -> None:
    rows, queries = (s["features.last"].float().numpy() for s in (fit_signals, unseen))
    for signals, images in ((unseen, queries), (fit_signals, rows)):
        expected = [naive(rows, image) for image in images[:40]]
        np.testing.assert_allclose(ECOD().fit(batches).score(signals)[:40].numpy(), expected, rtol=1e-5)


def test_tails_with_many_equal_values_equal_numpy() -> None:
    generator = torch.Generator().manual_seed(1)
    rows, bank = (torch.randint(0, 5, (n, 7), generator=generator).float() for n in (40, 30))
    rows[0], rows[1], bank[:, 3] = -1.0, 9.0, 2.0
    left, right = tails(rows, bank.T.contiguous().sort(dim=1).values)
    below, above = (
        (1 + compare(bank[None].numpy(), rows[:, None].numpy()).sum(axis=1)) / 31 for compare in (np.less_equal, np.greater_equal)
    )
    np.testing.assert_allclose(left.numpy(), -np.log(below), rtol=1e-12)
    np.testing.assert_allclose(right.numpy(), -np.log(above), rtol=1e-12)


def test_skewness_equals_scipy(fit_signals: Signals) -> None:
    rows = fit_signals["features.last"]
    np.testing.assert_allclose(skewness(rows).numpy(), skew(rows.numpy()), rtol=1e-9)


def test_constant_columns_count_nothing_where_they_are_the_same(fit_signals: Signals, unseen: Signals) -> None:
    flat, test = ({"features.last": torch.nn.functional.pad(s["features.last"], (0, 1), value=0.1)} for s in (fit_signals, unseen))
    torch.testing.assert_close(ECOD().fit([flat]).score(test), ECOD().fit([fit_signals]).score(unseen))
    assert float(skewness(flat["features.last"])[-1]) == 0.0


def test_one_image_alone_is_usual(fit_signals: Signals) -> None:
    one = {"features.last": fit_signals["features.last"][:1]}
    assert float(ECOD().fit([one]).score(one)) == 0.0


def test_known_failure_an_odd_combination_of_usual_values_is_not_seen() -> None:
    generator = torch.Generator().manual_seed(8)
    common = torch.randn(500, 1, generator=generator)
    rows = torch.cat([common + 0.05 * torch.randn(500, 1, generator=generator) for _ in range(2)], dim=1)
    fitted = ECOD().fit([{"features.last": rows}])
    assert float(fitted.score({"features.last": torch.tensor([[0.5, -0.5]])})) < float(fitted.score({"features.last": rows}).median())


def test_known_failure_far_images_tie(batches: list[Signals], unseen: Signals) -> None:
    fitted = ECOD().fit(batches)
    far = fitted.score({"features.last": torch.full((2, 12), 1e3) * torch.tensor([[1.0], [9.0]])})
    assert float(far[0]) == float(far[1]) == pytest.approx(12 * np.log(151))


def test_the_bank_is_bounded(batches: list[Signals]) -> None:
    assert ECOD(max_bank=30).fit(batches).state["sorted"].shape == (12, 30)


def test_parameters_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_bank"):
        ECOD.from_params({"max_bank": 1})
