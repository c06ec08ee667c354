"""Fusion against its formula, and its false alarms where the parts depend on each other."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import chi2, kstest
from torch import Tensor

from offmap.calibrate.conformal import Conformal
from offmap.core.errors import ConfigError, SignalError
from offmap.score.fusion import Fusion
from offmap.score.isolation_forest import IsolationForest
from offmap.score.knn import KNN
from offmap.score.mahalanobis import Mahalanobis

Signals = dict[str, Tensor]
ALIKE = ("mahalanobis", "knn", "kde", "lof")
"""On isotropic rows all four see the distance to the middle."""


def draw(count: int, seed: int, *, shift: float = 0.0, width: int = 6) -> Signals:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.exp(0.4 * torch.randn(count, 1, generator=generator, dtype=torch.float64))
    rows = spread * torch.randn(count, width, generator=generator, dtype=torch.float64)
    rows[:, 0] += shift
    return {"features.last": rows + 1.0}


FIT, HELD, TEST = draw(150, 1), draw(45, 2), draw(60, 3, shift=1.0)


def raw(rows: Signals) -> np.ndarray:
    """Scores of the parts, each fitted by itself."""
    parts = [Mahalanobis(), KNN(k=3)]
    fitted = [p.fit([FIT], held_out=[HELD]) for p in parts]
    return np.stack([f.score(rows).double().numpy() for f in fitted], axis=1)


def robust(values: np.ndarray) -> tuple[float, float]:
    centre = float(np.median(values))
    return centre, 1.4826 * float(np.median(np.abs(values - centre)))


@pytest.mark.parametrize(
    ("reduce", "rule"),
    [("mean", lambda z: z.mean(axis=1)), ("max", lambda z: z.max(axis=1)), ("logsumexp", lambda z: logsumexp(z, axis=1))],
)
def test_standardised_scores_are_reduced_and_standardised_again(reduce: str, rule: Callable[[np.ndarray], np.ndarray]) -> None:
    laws = [robust(column) for column in raw(HELD).T]
    held, test = (np.stack([(c - m) / s for c, (m, s) in zip(raw(x).T, laws, strict=True)], axis=1) for x in (HELD, TEST))
    centre, spread = robust(rule(held))
    detector = Fusion.from_params({"methods": ["mahalanobis", "knn"], "reduce": reduce, "settings": ["knn.k=3"]})
    got = detector.fit([FIT], held_out=[HELD]).score(TEST).numpy()
    np.testing.assert_allclose(got, (rule(test) - centre) / spread, rtol=1e-4, atol=1e-4)


def surprise(held: np.ndarray, x: float) -> float:
    """-ln p by counting at the held-out values, in between by a straight line, beyond by the mean excess."""
    held, m = np.sort(held), len(held)
    at = (1 + np.arange(m, 0, -1)) / (m + 1)
    upper = held[-max(2, round(0.1 * m)) :]
    excess = np.mean(upper[1:] - upper[0])
    return float(-np.log(np.interp(x, held, at, left=1.0)) + max(0.0, x - held[-1]) / excess)


def test_fisher_ranks_its_statistic_among_those_of_held_out_images() -> None:
    held, test = raw(HELD), raw(TEST)

    def statistic(rows: np.ndarray) -> np.ndarray:
        return np.array([2 * sum(surprise(held[:, j], row[j]) for j in range(2)) for row in rows])

    expected = [surprise(statistic(held), t) for t in statistic(test)]
    fitted = Fusion(methods=("mahalanobis", "knn"), reduce="fisher", settings=("knn.k=3",)).fit([FIT], held_out=[HELD])
    np.testing.assert_allclose(fitted.score(TEST).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_p_values_are_uniform_in_spite_of_dependent_parts_and_fishers_own_are_not() -> None:
    fitted = Fusion(methods=ALIKE, reduce="fisher").fit([draw(400, 11)], held_out=[draw(400, 12)])
    unseen = draw(3000, 13)
    parts = torch.stack(list(fitted.detector.parts(fitted.state, unseen).values()))  # type: ignore[attr-defined]
    correlation = torch.corrcoef(parts.argsort(dim=1).argsort(dim=1).double())
    assert float(correlation.min()) > 0.7
    recalibrated = np.exp(-fitted.score(unseen).double().numpy())
    fishers = chi2.sf(2 * parts.sum(dim=0).numpy(), 2 * len(ALIKE))
    assert abs((recalibrated <= 0.05).mean() - 0.05) < 0.02
    assert abs(recalibrated.mean() - 0.5) < 0.04
    assert (fishers <= 0.05).mean() > 0.10
    assert (fishers <= 0.005).mean() > 0.03


@pytest.mark.parametrize("reduce", ["mean", "max", "fisher"])
def test_the_gates_p_values_are_uniform_whatever_the_rule(reduce: str) -> None:
    fitted = Fusion.from_params({"methods": list(ALIKE), "reduce": reduce}).fit([draw(300, 21)], held_out=[draw(80, 22)])
    ranks = Conformal().fit([fitted.score(draw(2000, 23))])
    p = ranks.p_value(fitted.score(draw(3000, 24))[None]).numpy()
    assert kstest(p, "uniform").statistic < 0.045
    assert 0.03 < (p <= 0.05).mean() < 0.07


def test_two_independent_parts_see_more_than_one() -> None:
    def pair(count: int, seed: int, shift: float) -> Signals:
        return {
            "features.a": draw(count, seed, shift=shift)["features.last"],
            "features.b": draw(count, seed + 1, shift=shift)["features.last"],
        }

    def area(fitted: "object", usual: Signals, odd: Signals) -> float:
        return float((fitted.score(odd)[:, None] > fitted.score(usual)[None]).double().mean())  # type: ignore[attr-defined]

    fit, held, usual, odd = pair(300, 31, 0), pair(100, 41, 0), pair(400, 51, 0), pair(400, 61, 2.5)
    alone = area(KNN(layer="a").fit([fit]), usual, odd)
    fused = Fusion(methods=("knn", "mahalanobis"), settings=("knn.layer=a", "mahalanobis.layer=b"))
    assert fused.needs == {"features.a", "features.b"}
    assert area(fused.fit([fit], held_out=[held]), usual, odd) > alone + 0.03


def test_known_failure_parts_that_see_nothing_dilute_the_one_that_does() -> None:
    def many(count: int, seed: int, shift: float) -> Signals:
        return {"features.good": draw(count, seed, shift=shift)["features.last"], "features.blind": draw(count, seed + 1)["features.last"]}

    fit, held, usual, odd = many(300, 71, 0), many(100, 81, 0), many(300, 91, 0), many(300, 101, 3.0)
    blind = ("knn", "kde", "lof", "gmm")
    detector = Fusion(methods=("mahalanobis", *blind), settings=("mahalanobis.layer=good", *(f"{name}.layer=blind" for name in blind)))
    diluted, alone = detector.fit([fit], held_out=[held]), Mahalanobis(layer="good").fit([fit])
    areas = [float((f.score(odd)[:, None] > f.score(usual)[None]).double().mean()) for f in (diluted, alone)]
    assert areas[0] < areas[1] - 0.1


def test_far_images_do_not_tie() -> None:
    fitted = Fusion(methods=("mahalanobis", "knn"), reduce="fisher").fit([FIT], held_out=[HELD])
    far = [float(fitted.score(draw(1, 5, shift=s))) for s in (20.0, 100.0, 1000.0)]
    assert far[0] < far[1] < far[2] < np.inf


def test_parts_are_kept_by_name_and_equal_the_detector_alone() -> None:
    fitted = Fusion(methods=("isolation_forest", "knn")).fit([FIT], held_out=[HELD], generator=torch.Generator().manual_seed(7))
    alone = IsolationForest().fit([FIT], held_out=[HELD], generator=torch.Generator().manual_seed(7))
    for name, value in alone.state.items():
        assert torch.equal(fitted.state[f"part.isolation_forest.{name}"], value)
    z = fitted.detector.parts(fitted.state, TEST)  # type: ignore[attr-defined]
    assert list(z) == ["isolation_forest", "knn"]
    assert torch.corrcoef(torch.stack([z["isolation_forest"], alone.score(TEST).double()]))[0, 1] > 0.9999


def test_without_held_out_images_every_fourth_is_kept_apart() -> None:
    fourth = torch.arange(150) % 4 == 3
    rows = FIT["features.last"]
    one = Fusion(methods=("mahalanobis", "knn")).fit([FIT]).score(TEST)
    other = Fusion(methods=("mahalanobis", "knn")).fit([{"features.last": rows[~fourth]}], held_out=[{"features.last": rows[fourth]}])
    assert torch.equal(one, other.score(TEST))


def test_what_the_parts_need_is_united() -> None:
    detector = Fusion(methods=("patchcore", "msp", "mahalanobis"))
    assert {"logits", "features.last"} <= detector.needs
    assert any(name.startswith("feature_map") for name in detector.needs)
    assert not any(name.startswith("feature_map") for name in Fusion().fit_needs | Fusion().fit_uses)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"methods": ["knn"]}, "two or more"),
        ({"methods": ["knn", "knn"]}, "two or more different"),
        ({"methods": ["knn", "mahalanobs"]}, "no method 'mahalanobs'; did you mean 'mahalanobis'"),
        ({"methods": ["knn", "fusion"]}, "fusion cannot be a part"),
        ({"methods": ["knn", "os.path"]}, "no method 'os.path'"),
        ({"methods": ["knn", "lof"], "settings": ["kn.k=3"]}, "did you mean 'knn'"),
        ({"methods": ["knn", "lof"], "settings": ["knn.k=0"]}, "k = 0 must be at least 1"),
        ({"methods": ["knn", "lof"], "settings": ["knn.kk=3"]}, "no parameter 'kk'"),
        ({"methods": ["knn", "lof"], "settings": ["knn"]}, "METHOD.FIELD=VALUE"),
        ({"reduce": "median"}, "'median'"),
    ],
)
def test_what_is_wrong_is_named(params: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Fusion.from_params(params)


def test_too_few_held_out_images_are_refused() -> None:
    with pytest.raises(SignalError, match="needs at least 4"):
        Fusion(methods=("mahalanobis", "knn")).fit([FIT], held_out=[{"features.last": HELD["features.last"][:3]}])


def test_contributions_are_the_standardised_scores_whose_mean_is_standardised_again() -> None:
    fitted = Fusion(methods=("mahalanobis", "knn"), settings=("knn.k=3",)).fit([FIT], held_out=[HELD])
    found = fitted.contributions(TEST)
    laws = [robust(column) for column in raw(HELD).T]
    for column, (name, values), (centre, spread) in zip(raw(TEST).T, found.items(), laws, strict=True):
        assert name in ("mahalanobis", "knn")
        np.testing.assert_allclose(values.numpy(), (column - centre) / spread, rtol=1e-4, atol=1e-4)
    assert KNN().fit([FIT]).contributions(TEST) == {}
