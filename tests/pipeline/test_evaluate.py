"""Evaluation of a table of predictions from end to end, against numbers computed from the table by hand."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import offmap
from offmap.core.errors import ConfigError, DataError
from offmap.pipeline.evaluate import Evaluation
from offmap.report.table import Row, Table

COLUMNS = ("path", "label", "prob.cat", "prob.dog", "ood", "split", "site", "group")
Made = tuple[Path, Table, dict[str, np.ndarray]]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """600 images: 300 to calibrate, 200 to test (a tenth out-of-distribution), 100 of a new site without labels."""
    rng, n = np.random.default_rng(0), 600
    split = np.array(["validation"] * 300 + ["test"] * 200 + ["new"] * 100)
    ood = (np.arange(n) % 10 == 0) & (split == "test")
    p = np.round(0.5 + 0.5 * rng.beta(3, 1, n), 4)
    right = rng.uniform(size=n) < p
    answer = rng.integers(0, 2, n)
    label = np.where(right, answer, 1 - answer)
    score = rng.normal(size=n) + 2 * ood - 2 * p
    cats = np.where(answer == 0, p, 1 - p)
    names = np.array(["cat", "dog"])
    rows = [
        (
            f"{i}.png",
            "" if ood[i] or split[i] == "new" else names[label[i]],
            cats[i],
            1 - cats[i],
            int(ood[i]),
            split[i],
            "AB"[i % 2],
            f"p{i}",
        )
        for i in range(n)
    ]
    path = write(tmp_path_factory.mktemp("table") / "preds.csv", COLUMNS, rows)
    table = Table.from_rows([Row(item=f"{i}.png", score=float(score[i]), verdict="accept") for i in range(n)])
    return path, table, {"p": p, "loss": np.where(ood, 1.0, ~right), "ood": ood, "split": split, "score": score.astype(np.float32)}


@pytest.fixture(scope="module")
def found(made: Made) -> Evaluation:
    return offmap.evaluate(made[0], scores=made[1], risk=0.1, probability=0.9, repeats=200)


def test_metrics_are_those_of_the_images_outside_the_calibration_split(made: Made, found: Evaluation) -> None:
    truth = made[2]
    test = truth["split"] == "test"
    loss = truth["loss"][test]
    assert found.metric("error", "score").value == pytest.approx(loss.mean())
    assert found.metric("fail_auroc", "max_probability").value == pytest.approx(roc_auc_score(1 - loss, truth["p"][test]))
    assert found.metric("fail_auroc", "score").value == pytest.approx(roc_auc_score(loss, truth["score"][test]))
    assert found.metric("ood_auroc", "score").value == pytest.approx(roc_auc_score(truth["ood"][test], truth["score"][test]))
    inside = test & (np.arange(600) % 2 == 0)
    assert found.metric("error", "score", stratum="site", value="A").value == pytest.approx(truth["loss"][inside].mean())
    with pytest.raises(ConfigError, match=r"no metric 'auc' of 'score' on all"):
        found.metric("auc", "score")


def test_rules_are_chosen_on_the_calibration_split_and_tried_on_the_test_split(made: Made, found: Evaluation) -> None:
    truth = made[2]
    rule = found.report.rules[0]
    assert (rule.confidence, rule.method, rule.n) == ("max_probability", "learn_then_test", 300)
    assert rule.threshold is not None
    own, test = truth["split"] == "validation", truth["split"] == "test"
    kept = truth["p"] > rule.threshold
    assert rule.coverage == pytest.approx(kept[own].mean())
    assert rule.risk == pytest.approx(truth["loss"][own & kept].mean())
    (trial,) = rule.trials
    assert (trial.images, trial.n, trial.accepted) == ("test", 200, (kept & test).sum())
    facts = trial.facts()
    assert facts["risk"] == pytest.approx(truth["loss"][test & kept].mean())
    assert facts["failures_per_review"] == pytest.approx(truth["loss"][test & ~kept].mean())
    assert facts["at_random"] == pytest.approx(truth["loss"][test].mean())
    assert facts["risk_lo"] < facts["risk"] < facts["risk_hi"]


def test_accuracy_is_estimated_where_labels_are_missing_and_beside_the_truth(found: Evaluation) -> None:
    new = [e for e in found.report.estimates if e.split == "new"]
    assert {e.method for e in new} == {
        "average_confidence",
        "difference_of_confidences",
        "average_threshold_confidence",
        "error_regression",
    }
    assert all(e.truth is None and 0.6 < e.measure.value < 1 for e in new)
    tested = next(e for e in found.report.estimates if e.split == "test")
    assert tested.truth is not None
    assert tested.truth.value == pytest.approx(1 - found.metric("error", "score").value)


def test_files(made: Made, found: Evaluation, tmp_path: Path) -> None:
    out = found.save(tmp_path / "out")
    names = ["abstention.json", "estimated_accuracy.csv", "index.html", "metrics.csv", "risk_coverage.csv"]
    assert sorted(p.name for p in out.iterdir()) == names
    metrics = rows_of(out / "metrics.csv")
    assert list(metrics[0]) == ["stratum", "value", "confidence", "metric", "estimate", "lo", "hi", "n", "n_failures", "n_ood"]
    assert {m["stratum"] for m in metrics} == {"all", "ood", "label", "site"}
    curve = [r for r in rows_of(out / "risk_coverage.csv") if r["confidence"] == "score"]
    assert float(curve[-1]["coverage"]) == 1.0
    assert float(curve[-1]["selective_risk"]) == pytest.approx(found.metric("error", "score").value)
    rules = json.loads((out / "abstention.json").read_text(encoding="utf-8"))["rules"]
    assert rules[0]["guaranteed_risk"] == 0.1
    assert rules[0]["probability"] == 0.9
    assert rules[0]["accepts"].startswith("max_probability > ")
    assert next(r for r in rules if r["confidence"] == "score")["accepts"].startswith(("score < ", "none"))
    found.save(out)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "index.html").write_text("<p>mine</p>", encoding="utf-8")
    with pytest.raises(ConfigError, match="not written by offmap"):
        found.save(tmp_path / "foreign")


def test_the_same_seed_gives_the_same_and_images_that_break_the_promise_are_named(made: Made) -> None:
    one, two = (offmap.evaluate(made[0], risk=0.15, probability=0.9, repeats=100, seed=3) for _ in range(2))
    assert repr(one.report.metrics) == repr(two.report.metrics)
    assert repr(one.report.rules) == repr(two.report.rules)
    assert any("no promise covers them" in w for w in one.report.warnings)


def table(tmp_path: Path, n: int, *, columns: Sequence[str] = ("path", "correct", "confidence"), wrong: int = 5, **more: object) -> Path:
    """Every ``wrong``-th image fails, less often the surer it is."""
    rng = np.random.default_rng(1)
    rows = [(f"{i}", int(i % wrong != 0), float(rng.normal() + (i % wrong != 0)), *(str(v) for v in more.values())) for i in range(n)]
    return write(tmp_path / "preds.csv", [*columns, *more], rows)


def test_without_splits_a_random_half_chooses_thresholds(tmp_path: Path) -> None:
    found = offmap.evaluate(table(tmp_path, 400), risk=0.2, repeats=100)
    rule = found.report.rules[0]
    assert rule.n + rule.trials[0].n == 400
    assert 150 < rule.n < 250
    assert rule.trials[0].images == "the other half"
    assert found.report.estimates == ()
    assert found.metric("error", "confidence").value == pytest.approx(0.2)


def test_images_of_one_patient_calibrate_once_and_stay_together(tmp_path: Path) -> None:
    rows = [(f"{i}", int(i % 5 != 0), i % 7, f"patient {i // 4}") for i in range(400)]
    path = write(tmp_path / "preds.csv", ["path", "correct", "confidence", "group"], rows)
    found = offmap.evaluate(path, risk=0.3, repeats=100)
    rule = found.report.rules[0]
    assert rule.n == 50
    assert rule.trials[0].n == 200
    assert "100; drawn together" in found.report.facts["Patients"]


def test_patients_on_both_sides_are_named(tmp_path: Path) -> None:
    rows = [(f"{i}", int(i % 5 != 0), i % 7, f"patient {i % 90}", "validation" if i < 100 else "test") for i in range(200)]
    path = write(tmp_path / "preds.csv", ["path", "correct", "confidence", "group", "split"], rows)
    assert any(w.startswith("90 patients choose thresholds and try them too") for w in offmap.evaluate(path, repeats=100).report.warnings)


def test_a_perfect_classifier_is_accepted_with_a_word_of_caution(tmp_path: Path) -> None:
    found = offmap.evaluate(table(tmp_path, 400, wrong=1000), repeats=100, risk=0.05, testing="bonferroni")
    assert found.report.rules[0].threshold is not None
    rows = [(f"{i}", 1, i) for i in range(200)]
    none = offmap.evaluate(write(tmp_path / "all.csv", ["path", "correct", "confidence"], rows), repeats=100)
    assert any("None of the 200 images failed" in w for w in none.report.warnings)
    assert np.isnan(none.metric("fail_auroc", "confidence").value)
    assert none.metric("error", "confidence").high > 0.01
    assert "none" in none.report.html()


def test_too_few_images_to_show_a_bound_are_named(tmp_path: Path) -> None:
    found = offmap.evaluate(table(tmp_path, 40), risk=0.01, repeats=100)
    assert found.report.rules[0].threshold is None
    assert any("accepted ones are needed" in w for w in found.report.warnings)
    assert found.report.title.startswith("No share of the images")


def test_only_a_calibration_split_and_training_images_are_named(tmp_path: Path) -> None:
    only = offmap.evaluate(table(tmp_path, 100, split="validation"), repeats=100)
    assert any("tried on no others" in w for w in only.report.warnings)
    assert only.report.rules[0].trials == ()
    trained = offmap.evaluate(table(tmp_path, 100, split="train"), calibration="train", repeats=100)
    assert any("chosen on images that the classifier was trained on" in w for w in trained.report.warnings)
    plain = offmap.evaluate(table(tmp_path, 100, split="train"), repeats=100)
    assert any("'train' is evaluated too" in w for w in plain.report.warnings)


def test_refusals(made: Made, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"calibration = 'tset' is no split of the predictions; did you mean 'test'"):
        offmap.evaluate(made[0], calibration="tset")
    with pytest.raises(ConfigError, match="'new' has no labels"):
        offmap.evaluate(made[0], calibration="new")
    with pytest.raises(ConfigError, match="there is no column 'split'"):
        offmap.evaluate(table(tmp_path, 40), calibration="validation")
    with pytest.raises(DataError, match="10 images with known answers"):
        offmap.evaluate(table(tmp_path, 10))
    with pytest.raises(ConfigError, match="risk = 2"):
        offmap.evaluate(made[0], risk=2.0)
