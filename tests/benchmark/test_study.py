"""A whole study on images made by the test: what it must find, and every number against the formula."""

import csv
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import combine_pvalues, kendalltau
from sklearn.metrics import roc_auc_score
from tests.benchmark.study_world import Quick, rows_of, table
from tests.benchmark.study_world import write as make

from offmap.benchmark.study import HELD, TEST, StudyRun, Truth, run_study
from offmap.benchmark.study_cells import CHOSEN, COLUMNS, FISHER, MAXIMUM, MEAN, Cells, choose, combined, measure, p_values
from offmap.benchmark.study_file import METHODS, Study, read_study
from offmap.benchmark.study_page import facts, write
from offmap.benchmark.study_summary import Confounded, Summary, summarise
from offmap.benchmark.study_words import together
from offmap.core.errors import ConfigError

TASKS = ["plane", "machine", "side"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place: Path = tmp_path_factory.mktemp("study")
    make(place)
    return place


@pytest.fixture(scope="module")
def run(folder: Path) -> StudyRun:
    return run_study(read_study(folder / "toy.toml"), out=folder / "out", encoder=Quick())


@pytest.fixture(scope="module")
def cells(run: StudyRun) -> Cells:
    return measure(run)


@pytest.fixture(scope="module")
def found(run: StudyRun, cells: Cells) -> Summary:
    return summarise(run, cells)


def test_every_cell_is_there(run: StudyRun, cells: Cells) -> None:
    ok = [row for row in cells.rows if row["status"] == "ok" and row["task"] in TASKS]
    assert len(ok) == len(TASKS) * len(METHODS) * 3 * 2
    assert all(seeded.tasks[task].reasons == {} for seeded in run.seeds for task in TASKS)
    assert all(seeded.tasks["plane"].accuracy > 0.8 for seeded in run.seeds)
    assert all(set(row) <= set(COLUMNS) for row in cells.rows)


def test_all_tasks_see_the_same_images_and_patients_stay_in_one_part(run: StudyRun) -> None:
    for seeded in run.seeds:
        sizes = {name: {len(scores[name]) for said in seeded.tasks.values() for scores in said.scores.values()} for name in seeded.truth}
        assert all(len(found) == 1 for found in sizes.values())
        assert not set(seeded.truth[HELD].patients) & set(seeded.truth[TEST].patients)
        assert seeded.truth["damaged"].patients == seeded.truth[TEST].patients


def test_detection_numbers_are_those_of_scikit_learn(run: StudyRun, cells: Cells) -> None:
    for row in cells.rows[:: len(cells.rows) // 11]:
        if row["task"] not in TASKS:
            continue
        seeded = next(each for each in run.seeds if each.seed == row["seed"])
        scores = seeded.tasks[row["task"]].scores[row["method"]]
        own, other = scores[TEST], scores[row["shift"]]
        truth = np.r_[np.zeros(len(own)), np.ones(len(other))]
        assert row["auroc"] == pytest.approx(roc_auc_score(truth, np.r_[own, other]))
        assert row["auroc_lo"] <= row["auroc"] <= row["auroc_hi"]
        assert row["shift_share"] == len(other) / (len(own) + len(other))


def test_abstention_numbers_follow_the_identity(run: StudyRun, cells: Cells) -> None:
    """``AUGRC = (1 - AUROC_f) acc (1 - acc) + (1 - acc)^2 / 2``, Traub et al. 2024."""
    for row in (row for row in cells.rows if row["seed"] == 1 and row["task"] in TASKS and row["shift"] == "damaged"):
        seeded = run.seeds[0]
        failed = np.r_[seeded.truth[TEST].failed, seeded.truth["damaged"].failed]
        scores = seeded.tasks[row["task"]].scores[row["method"]]
        score = np.r_[scores[TEST], scores["damaged"]]
        error = failed.mean()
        area = roc_auc_score(failed, score) if 0 < error < 1 else 0.5
        assert row["augrc"] == pytest.approx((1 - area) * error * (1 - error) + error**2 / 2)
        assert (row["n_judged"], row["n_failures"]) == (len(failed), failed.sum())


def test_failures_are_those_of_the_clinical_task(run: StudyRun) -> None:
    for seeded in run.seeds:
        assert bool((seeded.truth["foot"].failed == 1).all())
        assert set(seeded.truth["other machine"].failed.tolist()) <= {0.0, 1.0}


def test_the_switch_counts_semantic_images_only_where_the_answer_is_wrong(folder: Path) -> None:
    """A foot is never a head or a heart; an image of unknown plane is left out."""
    rows = rows_of(folder)
    for row in rows:
        row[1] = "" if row[1] == "foot" and int(row[0][3:6]) % 2 else row[1]
        row.append("foot" if row[1] in ("foot", "") else "body")
    (folder / "switch").mkdir()
    (folder / "switch" / "im").symlink_to(folder / "im")
    table(folder / "switch", rows, columns=("path", "plane", "machine", "sex", "person", "region"))
    text = (folder / "toy.toml").read_text().replace('where = { plane = "foot" }', 'where = { region = "foot" }')
    (folder / "switch" / "toy.toml").write_text(
        text.replace("seeds = [1, 2]", 'methods = ["msp"]\nsemantic_ood_is_failure = false\nseeds = [1]')
    )
    switched = run_study(read_study(folder / "switch" / "toy.toml"), out=folder / "switch" / "out", encoder=Quick())
    failed = switched.seeds[0].truth["foot"].failed
    assert np.isnan(failed).sum() == 8
    assert bool((failed[~np.isnan(failed)] == 1).all())
    row = next(row for row in measure(switched).rows if row["shift"] == "foot")
    assert row["n_judged"] == row["n_id"] + 8


def test_each_network_answers_its_own_question(run: StudyRun) -> None:
    said = run.seeds[0].tasks
    assert said["plane"].classes == ("head", "heart")
    assert said["machine"].classes == ("A", "B")
    assert said["side"].classes == ("as it is", "mirrored")
    assert said["side"].passes["test_time_augmentation"] == "7F"
    assert said["plane"].passes["test_time_augmentation"] == "8F"
    assert said["plane"].passes["mc_dropout_entropy"] == "1F + 5 heads"
    assert said["plane"].passes["ensemble_entropy"] == "1F, 2 heads"


def test_an_equal_run_gives_equal_numbers(run: StudyRun, folder: Path) -> None:
    again = run_study(run.study, out=folder / "out", encoder=Quick())
    for one, other in zip(run.seeds, again.seeds, strict=True):
        for task in TASKS:
            for method in METHODS:
                for name, scores in one.tasks[task].scores[method].items():
                    np.testing.assert_array_equal(scores, other.tasks[task].scores[method][name])


def test_p_values_and_combinations_are_those_of_the_formulas() -> None:
    rng = np.random.default_rng(0)
    parts = {name: (rng.normal(size=19), rng.normal(size=7) + i) for i, name in enumerate("abc")}
    p = {name: np.array([(1 + (held >= s).sum()) / 20 for s in scores]) for name, (held, scores) in parts.items()}
    for name, (held, scores) in parts.items():
        np.testing.assert_allclose(p_values(held, scores), p[name])
    out = combined(parts, "b")
    stacked = np.stack(list(p.values()))
    np.testing.assert_allclose(out[FISHER], [combine_pvalues(column).statistic for column in stacked.T])
    np.testing.assert_allclose(out[MAXIMUM], 1 - stacked.min(axis=0))
    np.testing.assert_allclose(out[MEAN], 1 - stacked.mean(axis=0))
    np.testing.assert_allclose(out[CHOSEN], 1 - p["b"])


def test_the_task_is_chosen_on_held_out_images_only() -> None:
    """The one whose doubt meets the wrong answers; what it says of shifts is not looked at."""
    held = Truth(np.array([0.0, 0.0, 1.0, 1.0]), ("",) * 4)
    right, wrong = np.array([0.1, 0.2, 0.8, 0.9]), np.array([0.9, 0.8, 0.2, 0.1])
    parts = {"wrong": {HELD: wrong, "shift": np.ones(3)}, "right": {HELD: right, "shift": np.zeros(3)}}
    assert choose(parts, held) == "right"


def test_the_headline_is_that_of_the_cells(run: StudyRun, cells: Cells, found: Summary) -> None:
    for shift in run.study.shifts:
        means = {task: np.mean([row["auroc"] for row in cells.rows if (row["task"], row["shift"]) == (task, shift.name)]) for task in TASKS}
        best = found.shifts[shift.name]
        assert best.task == max(means, key=lambda task: means[task])
        assert best.means == pytest.approx(means)
        assert 0 <= best.sure <= 1
        keys = [(task, method) for task in TASKS for method in METHODS]
        mean = {
            name: [
                np.mean([row[name] for row in cells.rows if (row["task"], row["method"], row["shift"]) == (*key, shift.name)])
                for key in keys
            ]
            for name in ("auroc", "augrc")
        }
        contest = found.contests[shift.name]
        assert contest.tau is not None
        assert contest.tau.value == pytest.approx(kendalltau(mean["auroc"], -np.array(mean["augrc"])).statistic)
        assert mean["auroc"][keys.index(contest.detector)] == max(mean["auroc"])
        assert contest.judge is not None
        assert mean["augrc"][keys.index(contest.judge)] == min(mean["augrc"])
    assert found.differs == (len({best.task for best in found.kinds.values()}) > 1)
    assert sum("Kendall" in text for text in found.sentences) == 1


def test_labels_that_go_together_are_named_in_one_sentence() -> None:
    pairs = [Confounded("in distribution", a, b, v) for a, b, v in (("x", "y", 1.0), ("u", "w", 0.9), ("y", "z", 0.84))]
    assert together([*pairs, Confounded("shift 'far'", "the shift", "x", 1.0)]) == [
        "In distribution: u and w go together (Cramer's V 0.90): one cannot be told from the other here.",
        "In distribution: x, y and z go together (Cramer's V 0.84 to 1.00): one cannot be told from the other here.",
        "Shift 'far': the shift and x go together (Cramer's V 1.00): one cannot be told from the other here.",
    ]


def test_confounded_labels_are_said(found: Summary) -> None:
    pairs = {(each.images, each.one, each.other) for each in found.confounded}
    assert ("in distribution", "column 'machine'", "column 'sex'") in pairs
    assert ("shift 'other machine'", "the shift", "column 'machine'") in pairs
    assert not any("plane" in each.one and "machine" in each.other for each in found.confounded)
    assert any("column 'machine' and column 'sex' go together (Cramer's V 1.00)" in text for text in found.warnings)
    assert any("goes without 1 view that would change its label" in text for text in found.warnings)


def test_everything_is_written(run: StudyRun, cells: Cells, found: Summary, tmp_path: Path) -> None:
    from pyarrow import parquet

    write(run, cells, found, tmp_path)
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(cells.rows) == parquet.read_table(tmp_path / "results.parquet").num_rows
    assert tuple(rows[0]) == COLUMNS
    summary = json.loads((tmp_path / "study.json").read_text())
    assert summary["images"][TEST] == rows[0]["n_id"] or int(rows[0]["n_id"]) == summary["images"][TEST]
    assert set(summary["shifts"]) == {"other machine", "damaged", "foot"}
    assert summary["kendall_tau"]["value"] == pytest.approx(found.tau.value, abs=1e-5) if found.tau else False
    page = (tmp_path / "index.html").read_text()
    assert page.count("<svg") > 8
    assert "p12" not in page + json.dumps(summary)
    assert facts(run, cells, found)["methods"]["msp"] == dict.fromkeys(TASKS, "1F")


def test_a_method_that_fails_on_one_task_is_a_row_with_a_reason(run: StudyRun) -> None:
    first = run.seeds[0]
    said = first.tasks["side"]
    scores = {name: values for name, values in said.scores.items() if name != "msp"}
    lost = dataclasses.replace(first, tasks={**first.tasks, "side": dataclasses.replace(said, scores=scores, reasons={"msp": "no luck"})})
    broken = StudyRun(run.study, run.images, run.views, [lost], [], run.encoder)
    cells = measure(broken)
    rows = [row for row in cells.rows if row["status"] == "not_run"]
    assert {(row["task"], row["method"], row["reason"]) for row in rows} == {("side", "msp", "no luck")}
    assert len(rows) == 3
    assert "The method msp was not run on the task 'side': no luck." in summarise(broken, cells).warnings


def test_copies_of_training_images_are_left_out_of_shifts(folder: Path) -> None:
    place = folder / "copies"
    place.mkdir()
    (place / "im").mkdir()
    rows = rows_of(folder)
    for row in rows:
        source = rows[0] if row[0] == rows[-1][0] else row
        (place / row[0]).write_bytes((folder / source[0]).read_bytes())
    table(place, rows)
    text = (folder / "toy.toml").read_text().replace("seeds = [1, 2]", 'seeds = [1]\nmethods = ["energy"]')
    (place / "toy.toml").write_text(text)
    run = run_study(read_study(place / "toy.toml"), out=place / "out", encoder=Quick())
    assert "1 images of foot are copies of in-distribution images and were left out." in run.notes
    assert len(run.seeds[0].truth["foot"].failed) == 15


def test_images_that_cannot_be_read_are_counted_and_too_few_are_refused(folder: Path) -> None:
    place = folder / "broken"
    place.mkdir()
    (place / "im").mkdir()
    rows = rows_of(folder)
    for row in rows:
        (place / row[0]).write_bytes(b"no image" if row[1] == "foot" else (folder / row[0]).read_bytes())
    (place / rows[0][0]).write_bytes(b"")
    table(place, rows)
    text = (folder / "toy.toml").read_text().replace("seeds = [1, 2]", 'seeds = [1]\nmethods = ["energy"]')
    (place / "toy.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"none of the 16 images of foot can be read; `offmap check` says why"):
        run_study(read_study(place / "toy.toml"), out=place / "out", encoder=Quick())


def test_a_class_that_misses_a_part_is_named(run: StudyRun, folder: Path) -> None:
    rows = rows_of(folder)
    place = folder / "rare"
    place.mkdir()
    (place / "im").symlink_to(folder / "im")
    for i, row in enumerate(rows):
        row[3], row[4] = ("x", "one") if i < 6 else (row[3], row[4])
    table(place, rows)
    text = (folder / "toy.toml").read_text().replace('column = "machine"', 'column = "sex"').replace("seeds = [1, 2]", 'methods = ["msp"]')
    (place / "toy.toml").write_text(text)
    with pytest.raises(
        ConfigError, match=r"task 'machine': no image of the class 'x' is in the (fit|held_out|test) part of seed 1; give more"
    ):
        run_study(read_study(place / "toy.toml"), out=place / "out", encoder=Quick())
    assert math.isfinite(run.seeds[0].tasks["side"].accuracy)


def test_the_study_is_as_it_was_read(run: StudyRun) -> None:
    assert isinstance(run.study, Study)
    assert run.encoder == ("quick", "quick")
    assert len(run.views.scored) == 8
    assert run.views.other == ()
