"""A cascade calibrated as one statistic keeps its false-alarm rate; a cascade of p-values does not."""

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor

from offmap.calibrate.cascade import Cascade, Cascaded
from offmap.calibrate.conformal import Split
from offmap.core.errors import BundleError, ConfigError, SignalError

RULE = Cascade(first="cheap", then="dear", undecided=(0.02, 0.5))


def draw(n: int, seed: int, *, shift: float = 0.0, link: float = 0.4) -> dict[str, Tensor]:
    """Scores of two detectors that see partly the same; the second has a heavy tail and another scale."""
    rng = np.random.default_rng(seed)
    shared, own = rng.standard_normal((2, n))
    cheap = shared + 0.3 * rng.standard_normal(n)
    dear = np.exp(link * shared + own + shift) * 100
    return {"cheap": torch.from_numpy(cheap).float(), "dear": torch.from_numpy(dear).float()}


def hide(fitted: Cascaded, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a run has: no second score where the first is sure."""
    asked = fitted.undecided(parts["cheap"])
    return {**parts, "dear": torch.where(asked, parts["dear"], torch.nan)}


@pytest.mark.parametrize(("rule", "undecided"), [("mean", (0.02, 0.5)), ("second", (0.02, 0.5)), ("max", (0.0, 1.0))])
def test_false_alarms_over_many_divisions_stay_within_binomial_bounds(rule: str, undecided: tuple[float, float]) -> None:
    """One new image for each of 700 independent divisions, so that the count of alarms is exactly binomial under P = k/(n+1)."""
    runs, alphas, alarms = 700, (0.01, 0.05, 0.2, 0.5), np.zeros(4)
    cascade = Cascade(first="cheap", then="dear", undecided=undecided, rule=rule)  # type: ignore[arg-type]
    for seed in range(runs):
        parts = draw(60 + 99 + 1, seed)
        fitted = cascade.fit({k: v[:60] for k, v in parts.items()})
        rest = fitted.score(hide(fitted, {k: v[60:] for k, v in parts.items()})).float()
        p = float(Split.fit(rest[:99]).p_value(rest[99:]))
        alarms += [p <= alpha for alpha in alphas]
    for alpha, count in zip(alphas, alarms, strict=True):
        assert binom.ppf(0.0005, runs, alpha) <= count <= binom.ppf(0.9995, runs, alpha), (alpha, count / runs)


def test_two_p_values_one_after_the_other_raise_more_alarms_than_they_say() -> None:
    alpha, naive, valid = 0.05, [], []
    for seed in range(100):
        parts = draw(60 + 199 + 200, seed, link=0.0)
        fitted = RULE.fit({k: v[:60] for k, v in parts.items()})
        first, second = (Split.fit(parts[k][60:259]).p_value(parts[k][259:]) for k in ("cheap", "dear"))
        asked = fitted.undecided(parts["cheap"][259:])
        naive.append(float((torch.where(asked, torch.minimum(first, second), first) <= alpha).double().mean()))
        both = fitted.score(hide(fitted, {k: v[60:] for k, v in parts.items()})).float()
        valid.append(float((Split.fit(both[:199]).p_value(both[199:]) <= alpha).double().mean()))
    assert np.mean(naive) > 0.065
    assert np.mean(valid) == pytest.approx(alpha, abs=0.01)


def test_the_share_that_needs_the_second_is_the_width_of_the_range() -> None:
    fitted = RULE.fit(draw(999, 0))
    assert float(fitted.undecided(draw(20000, 1)["cheap"]).double().mean()) == pytest.approx(0.48, abs=0.03)
    held = np.sort(draw(999, 0)["cheap"].double().numpy())[::-1]
    new = draw(500, 2)["cheap"]
    p1 = np.array([(1 + np.sum(held >= s)) / 1000 for s in new.double().numpy()])
    outside = (p1 < 0.02 - 1e-3) | (p1 > 0.5 + 1e-3)
    inside = (p1 > 0.02 + 1e-3) & (p1 < 0.5 - 1e-3)
    asked = fitted.undecided(new).numpy()
    assert not asked[outside].any()
    assert asked[inside].all()
    assert not set(held.tolist()) & {fitted.low, fitted.high}


def test_the_statistic_is_that_of_the_formula() -> None:
    held, new = draw(101, 0), draw(300, 1)
    for rule, reduce in {"mean": lambda a, b: (a + b) / 2, "max": np.maximum, "second": lambda a, b: b}.items():
        fitted = Cascade(first="cheap", then="dear", rule=rule).fit(held)  # type: ignore[arg-type]
        z = {}
        for name in held:
            law = held[name].double().numpy()
            middle = np.median(law)
            z[name] = (new[name].double().numpy() - middle) / (1.4826 * np.median(np.abs(law - middle)))
        asked = fitted.undecided(new["cheap"]).numpy()
        expected = np.where(asked, reduce(z["cheap"], z["dear"]), z["cheap"])
        np.testing.assert_allclose(fitted.score(hide(fitted, new)), expected, rtol=1e-6)
        np.testing.assert_array_equal(fitted.score(new), fitted.score(hide(fitted, new)))


def test_it_finds_what_only_the_second_sees_and_the_first_leaves_open() -> None:
    usual, odd = draw(1500, 1), draw(500, 3, shift=4.0)
    fitted = RULE.fit(draw(200, 0))
    ranks = Split.fit(fitted.score(usual).float())
    caught = ranks.p_value(fitted.score(odd).float()) <= 0.05
    assert float(caught[fitted.undecided(odd["cheap"])].double().mean()) > 0.9
    assert float(caught[~fitted.undecided(odd["cheap"])].double().mean()) < 0.2


def test_few_held_out_images_leave_every_high_score_open() -> None:
    fitted = RULE.fit({k: v[:20] for k, v in draw(100, 0).items()})
    assert bool(fitted.undecided(torch.tensor([1e6])).all())
    assert not bool(fitted.undecided(torch.tensor([-1e6])).any())


def test_a_score_that_counts_must_be_there() -> None:
    fitted, new = RULE.fit(draw(99, 0)), draw(50, 1)
    with pytest.raises(SignalError, match="needs the scores of cheap and dear; given: cheap"):
        fitted.score({"cheap": new["cheap"]})
    broken = torch.where(fitted.undecided(new["cheap"]), torch.inf, new["dear"])
    with pytest.raises(SignalError, match="not finite"):
        fitted.score({**new, "dear": broken})


def test_state_round_trip_and_damage() -> None:
    fitted = RULE.fit(draw(99, 0))
    assert Cascaded.from_state(RULE, fitted.state()) == fitted
    for broken in ({}, {**fitted.state(), "undecided": torch.zeros(3)}, {k: v for k, v in fitted.state().items() if k != "law.dear"}):
        with pytest.raises(BundleError, match="damaged"):
            Cascaded.from_state(RULE, broken)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"first": "a", "then": "a"}, "must name two parts"),
        ({"first": "a", "then": ""}, "must name two parts"),
        ({"first": "a", "then": "b", "undecided": (0.5, 0.2)}, r"undecided = \[0.5, 0.2\] must be two p-values"),
        ({"first": "a", "then": "b", "undecided": (0.1,)}, "must be two p-values"),
        ({"first": "a", "then": "b", "undecided": (0.1, 1.2)}, "must be two p-values"),
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Cascade(**wrong)  # type: ignore[arg-type]


def test_a_part_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"\[cascade\] names dear; the recipe's parts are cheap"):
        RULE.fit({"cheap": torch.rand(9)})
