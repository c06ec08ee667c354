"""Risk-coverage areas against scikit-learn, closed forms and sums by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from offmap.core.errors import ConfigError
from offmap.decide.risk_coverage import RiskCoverage, augrc_of

IMAGES = st.lists(st.tuples(st.integers(-4, 4), st.integers(0, 1)), min_size=1, max_size=40).map(
    lambda rows: np.array(rows, dtype=np.float64).T
)


def by_hand(confidence: np.ndarray, loss: np.ndarray) -> dict[str, float]:
    """Trapezoids over the points where the confidence changes, straight from the definitions."""
    n, points = len(loss), []
    for threshold in sorted(set(confidence.tolist()), reverse=True):
        kept = confidence >= threshold
        points.append((kept.sum() / n, loss[kept].mean(), loss[kept].sum() / n))
    coverage, selective, general = (np.array(v) for v in zip(*points, strict=True))
    return {
        "aurc": float(np.trapezoid(np.r_[selective[0], selective], np.r_[0.0, coverage])),
        "augrc": float(np.trapezoid(np.r_[0.0, general], np.r_[0.0, coverage])),
    }


@settings(max_examples=150, deadline=None)
@given(IMAGES)
def test_areas_are_the_trapezoids_of_the_definitions(images: np.ndarray) -> None:
    confidence, loss = images
    curve, truth = RiskCoverage.of(confidence, loss), by_hand(confidence, loss)
    assert float(curve.aurc()) == pytest.approx(truth["aurc"], abs=1e-12)
    assert float(curve.augrc()) == pytest.approx(truth["augrc"], abs=1e-12)


@settings(max_examples=150, deadline=None)
@given(IMAGES)
def test_closed_form_of_augrc(images: np.ndarray) -> None:
    confidence, loss = images
    curve = RiskCoverage.of(confidence, loss)
    area = roc_auc_score(1 - loss, confidence) if 0 < loss.mean() < 1 else np.nan
    assert float(curve.fail_auroc()) == pytest.approx(area, nan_ok=True)
    assert abs(float(curve.augrc()) - augrc_of(float(area), float(loss.mean()))) < 1e-12


@settings(max_examples=50, deadline=None)
@given(IMAGES, st.randoms(use_true_random=False))
def test_the_order_of_tied_images_does_not_matter(images: np.ndarray, random: object) -> None:
    order = np.random.default_rng(random.randrange(2**32)).permutation(images.shape[1])  # type: ignore[attr-defined]
    one, two = RiskCoverage.of(*images), RiskCoverage.of(*images[:, order])
    for name in ("aurc", "augrc", "e_aurc", "e_augrc", "fail_auroc"):
        assert float(getattr(one, name)()) == pytest.approx(float(getattr(two, name)()), nan_ok=True)


@pytest.mark.parametrize(("loss", "aurc", "augrc"), [(0.0, 0.0, 0.0), (1.0, 1.0, 0.5)])
def test_all_right_and_all_wrong(loss: float, aurc: float, augrc: float) -> None:
    curve = RiskCoverage.of(np.arange(50.0), np.full(50, loss))
    assert float(curve.aurc()) == pytest.approx(aurc)
    assert float(curve.augrc()) == pytest.approx(augrc)
    assert float(curve.e_aurc()) == pytest.approx(0.0)
    assert float(curve.e_augrc()) == pytest.approx(0.0)
    assert np.isnan(curve.fail_auroc())


def test_the_best_order_has_no_excess_and_a_constant_confidence_half_the_error() -> None:
    loss = (np.arange(200_000) >= 150_000).astype(float)
    best = RiskCoverage.of(-loss - np.arange(200_000) * 1e-9, loss)
    assert float(best.e_aurc()) == pytest.approx(0.0, abs=1e-4)
    assert float(best.e_augrc()) == pytest.approx(0.0, abs=1e-12)
    assert float(best.fail_auroc()) == 1.0
    flat = RiskCoverage.of(np.zeros(8), np.array([0, 1, 0, 0, 1, 0, 0, 0.0]))
    assert float(flat.augrc()) == pytest.approx(0.125)
    assert float(flat.aurc()) == pytest.approx(0.25)
    assert float(flat.fail_auroc()) == pytest.approx(0.5)


def test_operating_points() -> None:
    curve = RiskCoverage.of(np.array([5, 4, 3, 3, 2, 1.0]), np.array([0, 0, 1, 0, 1, 1.0]))
    assert float(curve.risk_at(0.3)) == 0.0
    assert float(curve.risk_at(0.4)) == pytest.approx(0.25)
    assert float(curve.risk_at(1.0)) == pytest.approx(0.5)
    assert float(curve.coverage_at(0.25)) == pytest.approx(4 / 6)
    assert float(curve.coverage_at(0.0)) == pytest.approx(2 / 6)
    assert float(RiskCoverage.of(np.zeros(3), np.ones(3)).coverage_at(0.1)) == 0.0
    assert curve.thresholds.tolist() == [5, 4, 3, 2, 1]


def test_losses_between_0_and_1() -> None:
    rng = np.random.default_rng(0)
    confidence, loss = rng.integers(0, 9, 60).astype(float), rng.uniform(size=60)
    truth = by_hand(confidence, loss)
    assert float(RiskCoverage.of(confidence, loss).augrc()) == pytest.approx(truth["augrc"])
    assert float(RiskCoverage.of(confidence, loss).aurc()) == pytest.approx(truth["aurc"])


@settings(max_examples=60, deadline=None)
@given(IMAGES, st.integers(0, 999))
def test_a_bootstrap_sample_is_the_curve_of_the_drawn_images(images: np.ndarray, seed: int) -> None:
    n = images.shape[1]
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=3).astype(np.float64)
    many = RiskCoverage.of(*images, counts)
    for b, row in enumerate(counts.astype(int)):
        one = RiskCoverage.of(*np.repeat(images, row, axis=1))
        for name in ("error", "aurc", "augrc", "e_aurc", "e_augrc", "fail_auroc"):
            assert getattr(many, name)()[b] == pytest.approx(float(getattr(one, name)()), abs=1e-12, nan_ok=True)
        assert many.risk_at(0.5)[b] == pytest.approx(float(one.risk_at(0.5)))
        assert many.coverage_at(0.2)[b] == pytest.approx(float(one.coverage_at(0.2)))


def test_images_that_were_not_assessed_are_accepted_last() -> None:
    curve = RiskCoverage.of(np.array([1.0, -np.inf, 2.0, -np.inf]), np.array([0, 1, 0, 0.0]))
    assert curve.selective_risk.tolist() == [0.0, 0.0, 0.25]
    assert curve.thresholds[-1] == -np.inf


def test_the_closed_form_holds_for_a_million_images() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(size=1_000_000)
    loss = (rng.uniform(size=1_000_000) > confidence).astype(np.float64)
    curve = RiskCoverage.of(confidence, loss)
    augrc, aurc, area = float(curve.augrc()), float(curve.aurc()), float(curve.fail_auroc())
    assert abs(augrc - augrc_of(area, float(loss.mean()))) < 1e-12
    assert aurc > augrc


@pytest.mark.parametrize(
    ("confidence", "loss", "says"),
    [
        ([], [], "0 confidences and 0 losses"),
        ([1.0, 2.0], [0.0], "2 confidences and 1 losses"),
        ([1.0, np.nan], [0.0, 1.0], r"rows \[1\]"),
        ([np.inf, 1.0], [0.0, 1.0], r"rows \[0\]"),
        ([1.0, 2.0], [0.0, 2.0], r"row 1 has 2.0"),
        ([1.0, 2.0], [np.nan, 1.0], "row 0 has nan"),
    ],
)
def test_refusals(confidence: list[float], loss: list[float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        RiskCoverage.of(np.array(confidence), np.array(loss))


def test_points_out_of_range_are_refused() -> None:
    curve = RiskCoverage.of(np.arange(3.0), np.zeros(3))
    with pytest.raises(ConfigError, match="coverage = 0"):
        curve.risk_at(0.0)
    with pytest.raises(ConfigError, match=r"risk = 1.5"):
        curve.coverage_at(1.5)
