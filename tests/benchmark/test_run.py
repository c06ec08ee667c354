"""A whole benchmark on drawn images: what it writes, what it leaves out, and that it can be resumed."""

import csv
import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from offmap.benchmark import metrics, run
from offmap.benchmark.compare import Comparison, compare
from offmap.benchmark.delong import auroc_interval
from offmap.benchmark.plan import Method
from offmap.benchmark.results import COLUMNS
from offmap.benchmark.trial import Trial
from offmap.cli import app
from offmap.core.detector import Detector, State
from offmap.core.errors import ConfigError
from offmap.core.types import Signals

SUITE = """
name = "drawn"
max_id = 0
max_other = 0
seeds = [1, 2]
corruptions = ["noise", "stain_shift"]
severities = [4]

[[set]]
name = "shapes"
paths = ["disc", "square"]
label = "folder"

[[set]]
name = "rings"
paths = ["ring"]

[[set]]
name = "stripes"
paths = ["stripes"]

[[set]]
name = "lost"
paths = ["nowhere"]

[[id]]
set = "shapes"
near = ["rings"]
labels = true
"""
METHODS = ("knn", "mahalanobis", "energy", "odin", "oodd", "mfs_knn", "mcm")


def draw(kind: str, seed: int) -> Image.Image:
    """A grey picture of 64 pixels with one shape at a place of its own."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :64] - rng.uniform(24, 40, size=(2, 1, 1))
    inside = {
        "disc": np.hypot(x, y) < 14,
        "square": np.maximum(abs(x), abs(y)) < 12,
        "ring": abs(np.hypot(x, y) - 12) < 4,
        "stripes": np.sin(x) > 0,
    }[kind]
    return Image.fromarray(np.clip(60 + 120 * inside + rng.normal(0, 8, (64, 64)), 0, 255).astype(np.uint8))


def write_images(folder: Path) -> None:
    for k, (kind, count) in enumerate((("disc", 30), ("square", 30), ("ring", 12), ("stripes", 12))):
        (folder / kind).mkdir(parents=True)
        for i in range(count):
            draw(kind, 100 * k + i).save(folder / kind / f"{i:02d}.png")
    draw("disc", 0).save(folder / "ring" / "copy.jpg", quality=95)
    (folder / "stripes" / "broken.png").write_bytes(b"no picture")
    (folder / "suite.toml").write_text(SUITE, encoding="utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    write_images(folder)
    return folder


@pytest.fixture(scope="module")
def found(place: Path) -> Comparison:
    return compare(place / "suite.toml", out=place / "out", methods=METHODS, jobs=0)


def rows_of(place: Path) -> list[dict[str, str]]:
    with (place / "out" / "results.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_row_has_the_columns_and_finite_numbers_or_a_reason(found: Comparison, place: Path) -> None:
    rows = rows_of(place)
    assert tuple(rows[0]) == COLUMNS
    for row in rows:
        assert row["suite"] == "drawn"
        if row["status"] == "ok":
            numbers = [row[name] for name in COLUMNS if name.startswith(("auroc", "aupr", "fpr95", "below_best"))]
            assert np.isfinite(np.array(numbers, dtype=float)).all(), row
            assert float(row["auroc_lo"]) <= float(row["auroc"]) + 1e-9
            assert row["tuned_on_ood"] == "no"
        else:
            assert row["status"] == "not_run"
            assert len(row["reason"]) > 10, row


def test_numbers_are_those_of_the_scores(found: Comparison) -> None:
    bench = found.bench
    trial, division = bench.trials["shapes", 1, "knn"], bench.divisions["shapes", 1]
    own = trial.scores["shapes"][bench.sets["shapes"].rows(division.test)]
    other = trial.scores["stripes"]
    row = next(r for r in found.results.rows if (r["method"], r.get("other_set"), r.get("seed")) == ("knn", "stripes", 1))
    assert row["auroc"] == metrics.auroc(own, other)
    assert (row["auroc_delong_lo"], row["auroc_delong_hi"]) == auroc_interval(own, other)
    assert (row["n_id"], row["n_other"]) == (len(own), 12)


def test_the_baseline_is_always_a_row(found: Comparison) -> None:
    assert "intensity" in {line["method"] for line in found.summary}


def test_a_missing_folder_is_named_and_the_run_goes_on(found: Comparison) -> None:
    lost = [r for r in found.results.rows if r.get("other_set") == "lost"]
    assert lost
    assert all(r["status"] == "not_run" and "nowhere" in r["reason"] for r in lost)


def test_methods_that_cannot_run_say_why(found: Comparison) -> None:
    reasons = {r["method"]: r["reason"] for r in found.results.rows if r["status"] != "ok"}
    assert "depends on the images before" in reasons["oodd"]
    assert "needs image_embedding" in reasons["mcm"]
    assert "knn" not in reasons


def test_a_copy_of_an_in_distribution_image_is_named_and_left_out(found: Comparison, place: Path) -> None:
    (overlap,) = [o for o in found.results.overlaps if o.other == "rings"]
    assert "copy.jpg" in overlap.sentence
    assert "00.png" in overlap.sentence
    assert {r["n_other"] for r in found.results.rows if r.get("other_set") == "rings" and r["status"] == "ok"} == {12}
    assert "copy.jpg" in (place / "out" / "summary.md").read_text(encoding="utf-8")


def test_a_broken_file_is_counted_and_named(found: Comparison) -> None:
    assert [n for n in found.bench.notes if "stripes" in n and "broken.png" in n]


def test_corrupted_test_images_are_compared_with_clean_ones(found: Comparison) -> None:
    rows = [r for r in found.results.rows if r.get("other_set") == "shapes~noise@4" and r["method"] == "knn"]
    assert [r["kind"] for r in rows] == ["corruption", "corruption"]
    assert all(r["n_id"] == r["n_other"] for r in rows)
    assert min(r["auroc"] for r in rows) > 0.6


def test_a_corruption_of_colour_leaves_grey_images_out_and_says_so(found: Comparison) -> None:
    (reason,) = {r["reason"] for r in found.results.rows if r.get("other_set") == "shapes~stain_shift@4"}
    assert "0 others" in reason


def test_classifiers_are_trained_on_the_fit_part(found: Comparison) -> None:
    head = found.bench.heads["shapes", 1]
    assert head.classes == ("disc", "square")
    assert head.accuracy > 0.8
    assert {r["head_accuracy"] for r in found.results.rows if r["method"] == "energy" and r["seed"] == 1} == {head.accuracy}


def test_further_passes_go_through_the_classifier_of_the_division(found: Comparison) -> None:
    trial = found.bench.trials["shapes", 2, "odin"]
    assert trial.status == "ok"
    scored = np.isfinite(trial.scores["shapes"])
    assert scored.sum() == len(found.bench.divisions["shapes", 2].test)


def test_the_page_and_the_plots_are_there(found: Comparison, place: Path) -> None:
    page = (place / "out" / "index.html").read_text(encoding="utf-8")
    assert "Benchmark drawn" in page
    assert "data:image/svg+xml" in page
    assert (place / "out" / "plots" / "roc_shapes.svg").stat().st_size > 1000
    facts = json.loads((place / "out" / "run.json").read_text(encoding="utf-8"))
    assert facts["seeds"] == [1, 2]


def test_a_second_run_fits_nothing_and_gives_the_same_table(found: Comparison, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (place / "out" / "results.csv").read_bytes()

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("a trial that is known was fitted again")

    monkeypatch.setattr(run, "fit", never)
    compare(place / "suite.toml", out=place / "out", methods=METHODS, jobs=0)
    assert (place / "out" / "results.csv").read_bytes() == before


def test_an_interrupted_run_goes_on_where_it_stopped(found: Comparison, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = place / "out" / "trials" / "shapes" / "1" / "mahalanobis.safetensors"
    kept = Trial.load(gone)
    gone.write_bytes(gone.read_bytes()[:50])
    fitted: list[str] = []
    real = run.fit

    def counted(detector: Detector, *parts: Iterable[Signals], seed: int) -> object:
        fitted.append(detector.method())
        return real(detector, *parts, seed=seed)

    monkeypatch.setattr(run, "fit", counted)
    compare(place / "suite.toml", out=place / "out", methods=METHODS, jobs=0)
    assert fitted == ["mahalanobis"]
    again = Trial.load(gone)
    assert kept is not None
    assert again is not None
    assert all(np.array_equal(kept.scores[name], again.scores[name]) for name in kept.scores)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Broken(Detector):
    """Fails, as bad code does."""

    reference: ClassVar[str] = "none"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"features.last"})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        raise ZeroDivisionError("patient Smith")

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        raise NotImplementedError


def test_a_failing_method_is_a_row_and_stops_nothing(found: Comparison, place: Path, tmp_path: Path) -> None:
    setup = dataclasses.replace(
        found.bench.setup, out=tmp_path, methods=(Method("broken", Broken(), "vectors"), found.bench.setup.methods[0]), seeds=(1,)
    )
    bench = run.Bench(setup)
    bench.run()
    trial = bench.trials["shapes", 1, "broken"]
    assert (trial.status, trial.reason) == ("not_run", "unexpected ZeroDivisionError")
    assert bench.trials["shapes", 1, setup.methods[1].name].status == "ok"


def test_a_suite_without_its_in_distribution_set_is_refused(place: Path, tmp_path: Path) -> None:
    (tmp_path / "suite.toml").write_text(SUITE, encoding="utf-8")
    with pytest.raises(ConfigError, match="no in-distribution set is there"):
        compare(tmp_path / "suite.toml", out=tmp_path / "out", jobs=0)


def test_an_unknown_method_is_refused_with_the_nearest_name(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'mahalanobis'"):
        compare(place / "suite.toml", out=tmp_path, methods=["mahalanobi"], jobs=0)


def test_a_part_of_the_recipe_with_other_parameters_is_a_row_of_its_own(place: Path, tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text(
        '[prepare.resize]\nsize = "encoder"\n[score.near]\nmethod = "knn"\nk = 1\n[score.plain]\nmethod = "energy"\n'
    )
    found = compare(place / "suite.toml", out=tmp_path / "out", recipe=str(tmp_path / "my.toml"), methods=["near", "knn"], seeds=1, jobs=0)
    assert {line["method"] for line in found.summary} == {"near", "knn", "intensity"}
    with pytest.raises(ConfigError, match="there is no method 'plain'"):
        compare(place / "suite.toml", out=tmp_path / "out", recipe=str(tmp_path / "my.toml"), methods=["plain"], jobs=0)


def test_the_command_says_what_was_done(found: Comparison, place: Path) -> None:
    asked = ["benchmark", str(place / "suite.toml"), "--out", str(place / "out"), "--methods", ",".join(METHODS), "--jobs", "1", "--json"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["event"] == "done"
    assert last["methods"] == len(found.summary)


def test_a_page_of_somebody_else_is_not_replaced(place: Path, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<html>mine</html>", encoding="utf-8")
    done = CliRunner().invoke(app, ["benchmark", str(place / "suite.toml"), "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert (tmp_path / "index.html").read_text(encoding="utf-8") == "<html>mine</html>"
