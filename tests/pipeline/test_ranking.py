"""AUROC with its bootstrap against counting, and the choice between detectors that cannot be told apart."""

import numpy as np
import pytest
import torch

from offmap.core.detector import Detector, Fitted
from offmap.pipeline.contest import Contestant, evaluations
from offmap.pipeline.findings import evidence, sentences, told
from offmap.pipeline.ranking import Draws, Standing, areas_under, choose, measure, order, usable
from offmap.pipeline.synthetic import KINDS
from offmap.score.fusion import Fusion
from offmap.score.intensity import Intensity
from offmap.score.knn import KNN
from offmap.score.mahalanobis import Mahalanobis


def counted(clean: np.ndarray, other: np.ndarray, counts: np.ndarray, units: np.ndarray) -> float:
    """Every pair of images of different units, one by one."""
    won = total = 0.0
    for i, low in enumerate(clean):
        for j, high in enumerate(other):
            if units[i] != units[j] and np.isfinite(low) and np.isfinite(high):
                weight = counts[i] * counts[j]
                total += weight
                won += weight * (1.0 if high > low else 0.5 if high == low else 0.0)
    return won / total


def test_auroc_of_every_bootstrap_sample_equals_counting() -> None:
    rng = np.random.default_rng(0)
    units = np.array([0, 0, 1, 2, 3, 4, 4, 5, 6, 7])
    clean, other = np.round(rng.normal(size=10), 1), np.round(rng.normal(0.5, size=10), 1)
    other[3] = np.nan
    draws = Draws.of(units, seed=1, repeats=20)
    assert (draws.counts[:, 0] == draws.counts[:, 1]).all()
    assert (draws.counts[0] == 1).all()
    got = areas_under(clean, other, draws.counts, draws.strangers)
    expected = [counted(clean, other, row, units) for row in draws.counts]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_a_copy_is_not_compared_with_its_own_original() -> None:
    """Copies that always score a little higher than their original, but are not odd among others, are no evidence."""
    clean = np.arange(20.0)
    draws = Draws.of(np.arange(20), seed=0)
    areas = areas_under(clean, clean + 0.1, draws.counts, draws.strangers)
    assert areas[0] == pytest.approx(0.5)
    assert areas[1:].mean() == pytest.approx(0.5, abs=0.01)


def contestant(name: str, shift: float, *, noise: int = 0, megabytes: float = 1.0) -> Contestant:
    """Scores of 40 images whose anomalies lie ``shift`` higher."""
    rng = np.random.default_rng(noise)
    detector: Detector = KNN() if "+" not in name else Fusion(methods=("knn", "mahalanobis"))
    one = Contestant(name, detector, fitted=Fitted(detector, {"bank": torch.zeros(1).expand(round(megabytes * 250_000))}))
    clean = np.random.default_rng(7).normal(size=40)
    one.scores = {"clean": clean} | {
        kind: clean[rng.permutation(40)] + (shift if KINDS[kind].group in ("local", "whole") else 0.0)
        for kind in KINDS
        if kind != "clean" and not KINDS[kind].colour
    }
    return one


DRAWS = Draws.of(np.arange(40), seed=0)


def standing(one: Contestant) -> Standing:
    return measure(one, DRAWS, usable([one]))


def test_a_standing_is_the_mean_of_parts_and_whole() -> None:
    found = standing(contestant("one", 1.0))
    local = [found.areas[kind] for kind in found.areas if KINDS[kind].group == "local"]
    whole = [found.areas[kind] for kind in found.areas if KINDS[kind].group == "whole"]
    assert found.mean == pytest.approx((np.mean(local) + np.mean(whole)) / 2)
    assert found.interval[0] < found.mean < found.interval[1]
    assert set(found.forms) == {"half", "png", "jpeg85", "jpeg95", "half_jpeg90"}
    assert abs(found.form - 0.5) < 0.1
    assert not any("stain_shift" in kind for kind in found.areas)


def test_of_those_that_cannot_be_told_apart_the_cheapest_is_chosen() -> None:
    sizes = {"large": 64.0, "small": 1.0, "small too": 0.1, "large + small": 0.1}
    near = [standing(contestant(name, 1.0, noise=n, megabytes=sizes[name])) for n, name in enumerate(sizes)]
    far = standing(contestant("far", 0.2))
    ranked = order([*near, far])
    assert ranked[-1] is far
    assert choose(ranked) is next(s for s in ranked if s.one.name.startswith("small"))
    told = " ".join(sentences(choose(ranked), ranked, Mahalanobis()))
    assert ("cheapest" in told) == (not ranked[0].one.name.startswith("small"))


def test_a_baseline_is_ranked_and_not_recommended() -> None:
    baseline, better = contestant("intensity", 3.0), contestant("a", 1.0)
    baseline.detector = Intensity()
    ranked = order([standing(baseline), standing(better)])
    assert [s.one.name for s in ranked] == ["intensity", "a"]
    assert choose(ranked).one.name == "a"
    assert choose(ranked[:1]).one.name == "intensity"
    found = evidence(ranked[1], ranked, sizes=(40, 20, 40), seed=0, date="", digest="", encoder="builtin")
    told_all = told(ranked[1], ranked, [baseline, better], Mahalanobis(), found, [])
    assert any("baseline intensity does better" in text for text in told_all.warnings)
    assert found["best"] == "a"


def test_a_detector_that_is_clearly_better_is_chosen_whatever_its_price() -> None:
    ranked = order([standing(contestant("b + a", 2.0)), standing(contestant("a", 1.0))])
    assert choose(ranked).one.name == "b + a"


@pytest.mark.parametrize(("passes", "number"), [("1F", 1), ("2F+1B", 3), ("10F", 10), ("S·F", np.inf), ("F", np.inf)])
def test_passes_are_counted(passes: str, number: float) -> None:
    assert evaluations(passes) == number
