"""p-values: the formula, ties, the guarantee, caps, invariance."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from offmap.calibrate.conformal import Calibrated, Conformal, Cross, Split, from_state
from offmap.core.errors import BundleError, ConfigError, SignalError


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def naive(folds: list[list[float]], scores: list[list[float]]) -> list[float]:
    n = sum(map(len, folds))
    images = range(len(scores[0]))
    return [(1 + sum(c >= scores[k][j] for k, fold in enumerate(folds) for c in fold)) / (n + 1) for j in images]


coarse = st.integers(-3, 3).map(float)


@given(st.lists(coarse, min_size=1, max_size=12), st.lists(coarse, min_size=1, max_size=8))
@settings(deadline=None)
def test_split_is_the_formula_also_with_ties(calibration: list[float], scores: list[float]) -> None:
    p = Split.fit(torch.tensor(calibration)).p_value(torch.tensor(scores))
    assert p.tolist() == naive([calibration], [scores])


@given(st.lists(st.lists(coarse, min_size=1, max_size=6), min_size=2, max_size=5), st.data())
@settings(deadline=None)
def test_cross_is_the_formula_also_with_ties(folds: list[list[float]], data: st.DataObject) -> None:
    m = data.draw(st.integers(1, 4))
    scores = [data.draw(st.lists(coarse, min_size=m, max_size=m)) for _ in folds]
    p = Cross.fit([torch.tensor(fold) for fold in folds]).p_value(torch.tensor(scores))
    assert p.tolist() == naive(folds, scores)


def test_float32_ties_are_ties_whatever_the_precision_given() -> None:
    third = 1 / 3
    ranks = Split.fit(torch.full((9,), third, dtype=torch.float64))
    for dtype in (torch.float32, torch.float64):
        assert ranks.p_value(torch.tensor([third], dtype=dtype)).tolist() == [1.0]


def test_a_higher_score_is_more_ood_and_the_cap_holds() -> None:
    ranks = Split.fit(torch.arange(99.0))
    p = ranks.p_value(torch.tensor([-1.0, 49.5, 98.0, 1e30]))
    assert p.tolist() == [1.0, 0.5, 0.02, 0.01]
    assert ranks.cap == pytest.approx(6.6439, abs=1e-4)
    assert ranks.surprise(p).tolist() == pytest.approx([0, 1, math.log2(50), ranks.cap])
    assert ranks.surprise(p).max() <= ranks.cap
    assert math.copysign(1, ranks.surprise(p)[0]) == 1


@pytest.mark.parametrize("n", [1, 2, 100, 181, 199, 500, 1000, 9999])
def test_no_surprise_is_above_its_cap(n: int) -> None:
    ranks = Split.fit(torch.arange(float(n)))
    assert float(ranks.surprise(ranks.p_value(torch.tensor([1e9])))) == pytest.approx(math.log2(n + 1))
    assert float(ranks.surprise(ranks.p_value(torch.tensor([1e9])))) <= ranks.cap


def test_randomised_p_values_are_uniform_despite_ties() -> None:
    draw = generator(3)
    scores = torch.poisson(torch.full((4000, 40), 2.0), generator=draw)
    p = torch.cat([Split.fit(row[1:]).randomised_p_value(row[:1], draw) for row in scores])
    assert kstest(p.numpy(), "uniform").pvalue > 0.01
    assert p.min() > 0
    assert p.max() <= 1


@pytest.mark.parametrize(("n", "alpha", "repeats"), [(19, 0.05, 10_000), (50, 0.05, 2000), (39, 0.1, 2000), (30, 0.01, 500)])
def test_false_alarms_stay_below_alpha_over_many_repeats(n: int, alpha: float, repeats: int) -> None:
    scores = torch.randn(repeats, n + 1, generator=generator(n)).exp()
    flagged = np.array([float(Split.fit(row[1:]).p_value(row[:1])) <= alpha + 1e-12 for row in scores])
    exact = math.floor(alpha * (n + 1) + 1e-9) / (n + 1)
    assert exact <= alpha + 1e-12
    assert abs(flagged.mean() - exact) <= 4 * math.sqrt(max(exact * (1 - exact), 1e-6) / len(flagged))


def test_conditional_false_alarm_rates_follow_the_beta_law() -> None:
    n, alpha = 200, 0.05
    calibration = torch.rand(2000, n, generator=generator(0))
    threshold = calibration.sort(dim=1, descending=True).values[:, 9]
    rates = (1 - threshold).numpy()
    probe = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    flagged = [float((Split.fit(row).p_value(probe) <= alpha + 1e-12).double().mean()) for row in calibration[:50]]
    np.testing.assert_allclose(flagged, rates[:50], atol=1e-4)
    assert kstest(rates, "beta", args=(10, 191)).pvalue > 0.01


def cross_false_alarms(seed: int, n: int, k: int, alpha: float, dimensions: int = 5) -> float:
    """A Gaussian detector refitted in each fold; share of new exchangeable points that it flags."""
    draw = generator(seed)
    data, new = torch.randn(n, dimensions, generator=draw), torch.randn(2000, dimensions, generator=draw)
    parts = torch.arange(n) % k
    folds, scores = [], []
    for fold in range(k):
        mean = data[parts != fold].mean(dim=0)
        folds.append((data[parts == fold] - mean).norm(dim=1))
        scores.append((new - mean).norm(dim=1))
    return float((Cross.fit(folds).p_value(torch.stack(scores)) <= alpha).double().mean())


def test_cross_false_alarms_are_about_alpha_in_the_mean() -> None:
    rates = np.array([cross_false_alarms(seed, n=119, k=5, alpha=0.05) for seed in range(150)])
    error = rates.std(ddof=1) / math.sqrt(len(rates))
    assert rates.mean() <= 0.05 + 3 * error
    assert rates.mean() >= 0.035
    assert rates.max() < 0.2


@given(st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=30), st.lists(st.floats(-6, 6, width=32), min_size=1, max_size=10))
@settings(deadline=None)
def test_strictly_monotone_transforms_change_nothing(calibration: list[float], scores: list[float]) -> None:
    a, b = torch.tensor(calibration, dtype=torch.float64), torch.tensor(scores, dtype=torch.float64)
    grid = torch.cat([a, b]).unique()
    rank = lambda x: torch.searchsorted(grid, x).double() ** 3 - 7  # noqa: E731
    assert torch.equal(Split.fit(a).p_value(b), Split.fit(rank(a)).p_value(rank(b)))


def test_order_of_calibration_images_does_not_matter() -> None:
    scores = torch.randn(57, generator=generator(1))
    shuffled = scores[torch.randperm(57, generator=generator(2))]
    assert torch.equal(Split.fit(scores).scores, Split.fit(shuffled).scores)


def test_cross_standardises_each_fold() -> None:
    base = torch.randn(60, generator=generator(4))
    ranks = Cross.fit([base[:30], 1000 * base[30:] + 5e4])
    new = torch.tensor([[3.0], [1000 * 3.0 + 5e4]])
    fold = np.sort(base[:30].double().numpy())
    z0 = (3 - np.median(fold)) / (1.4826 * np.median(np.abs(fold - np.median(fold))))
    other = base[30:].double().numpy()
    z1 = (3 - np.median(other)) / (1.4826 * np.median(np.abs(other - np.median(other))))
    assert float(ranks.score(new)) == pytest.approx((z0 + z1) / 2, rel=1e-4)
    assert ranks.pooled().shape == (60,)
    assert abs(float(ranks.pooled()[:30].median())) < 0.2
    assert abs(float(ranks.pooled()[30:].median())) < 0.2


def test_the_score_of_a_split_is_raw() -> None:
    ranks = Split.fit(torch.arange(9.0))
    assert ranks.score(torch.tensor([3.5, 8.25])).tolist() == [3.5, 8.25]


@pytest.mark.parametrize("ranks", [Split.fit(torch.tensor([3.0, 1, 2])), Cross.fit([torch.tensor([3.0, 1]), torch.tensor([7.0])])])
def test_state_round_trip(ranks: Calibrated) -> None:
    again = from_state(ranks.state())
    assert type(again) is type(ranks)
    assert torch.equal(again.scores, ranks.scores)
    assert again.sizes == ranks.sizes
    assert ranks.guarantee


@pytest.mark.parametrize(
    "change",
    [
        {"scores": torch.tensor([3.0, 1.0])},
        {"scores": torch.tensor([1.0, float("nan")])},
        {"scores": torch.tensor([1.0, 2.0], dtype=torch.float64)},
        {"sizes": torch.tensor([3])},
        {"sizes": torch.tensor([2, 0])},
        {"sizes": torch.tensor([3, -1])},
        {"sizes": torch.tensor([], dtype=torch.int64)},
        {"sizes": torch.tensor([2.0])},
    ],
)
def test_a_damaged_state_is_refused(change: dict[str, torch.Tensor]) -> None:
    with pytest.raises(BundleError, match="damaged"):
        from_state(Split.fit(torch.tensor([1.0, 2.0])).state() | change)
    with pytest.raises(BundleError, match="sizes"):
        from_state({"scores": torch.tensor([1.0])})


def test_nan_is_refused_naming_the_images() -> None:
    with pytest.raises(SignalError, match=r"images \[1\]"):
        Split.fit(torch.tensor([1.0, float("nan")]))
    with pytest.raises(SignalError, match=r"fold 1.*images \[0\]"):
        Cross.fit([torch.tensor([1.0]), torch.tensor([float("inf")])])
    ranks = Cross.fit([torch.tensor([1.0]), torch.tensor([2.0])])
    with pytest.raises(SignalError, match=r"images \[0, 2\]"):
        ranks.p_value(torch.tensor([[float("nan"), 1, 1], [1, 1, float("nan")]]))


def test_nothing_to_calibrate_on_is_refused() -> None:
    with pytest.raises(SignalError, match="at least one image"):
        Split.fit(torch.empty(0))
    with pytest.raises(SignalError, match="at least one image"):
        Cross.fit([torch.tensor([1.0]), torch.empty(0)])
    with pytest.raises(ConfigError, match="2 folds or more"):
        Cross.fit([torch.tensor([1.0])])


def test_scores_must_have_a_row_for_each_fold() -> None:
    with pytest.raises(SignalError, match="each of the 2 folds"):
        Cross.fit([torch.tensor([1.0]), torch.tensor([2.0])]).p_value(torch.tensor([1.0, 2.0]))


def test_no_new_images_give_no_p_values() -> None:
    assert Split.fit(torch.tensor([1.0])).p_value(torch.empty(0)).shape == (0,)


def test_kind_is_chosen_by_what_reject_needs() -> None:
    assert Conformal().choose(198) == "cross"
    assert Conformal().choose(199) == "split"
    assert Conformal(kind="split").choose(5) == "split"
    assert isinstance(Conformal().fit([torch.ones(3)]), Split)
    assert isinstance(Conformal().fit([torch.ones(3), torch.ones(2)]), Cross)
    with pytest.raises(ConfigError, match="folds = 1"):
        Conformal(folds=1)
    with pytest.raises(ConfigError, match="kind"):
        Conformal.from_params({"kind": "both"})
