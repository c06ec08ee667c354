"""From a folder of in-distribution images to a ranking, a page and a recipe that can be fitted."""

import csv
import dataclasses
import html
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

import offmap
from offmap.core.errors import ConfigError, DataError
from offmap.core.types import Signals
from offmap.pipeline import recipe as recipes
from offmap.pipeline.collect import Collected
from offmap.pipeline.contest import Contestant, screen
from offmap.pipeline.gate import Gate
from offmap.pipeline.recommend import Recommendation, _Run, recommend
from offmap.pipeline.saved import read_card
from offmap.pipeline.store import SignalStore
from offmap.pipeline.stream import Stream
from offmap.pipeline.toml import to_toml
from offmap.report.card import text
from offmap.represent.open import open_encoder
from offmap.score.fusion import Fusion
from offmap.score.knn import KNN

METHODS = ("multilayer_mahalanobis", "mahalanobis", "knn", "intensity", "msp", "relative_mahalanobis")


def picture(seed: int, size: int = 72) -> np.ndarray:
    """A soft disc on a dark ground."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size - 0.5
    cy, cx, r = rng.uniform(-0.1, 0.1), rng.uniform(-0.1, 0.1), rng.uniform(0.2, 0.35)
    field = 1 / (1 + np.exp(40 * (np.hypot(y - cy, x - cx) - r)))
    return np.asarray((np.clip(0.1 + 0.7 * field + 0.05 * rng.standard_normal((size, size)), 0, 1) * 255).round(), dtype=np.uint8)


@dataclass(frozen=True, kw_only=True)
class Dear(KNN):
    """Takes further passes."""

    passes: ClassVar[str] = "2F+1B"


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 discs, one constant image, one that is broken."""
    folder = tmp_path_factory.mktemp("recommend") / "train"
    folder.mkdir()
    for i in range(60):
        Pillow.fromarray(picture(i)).save(folder / f"{i:03d}.png")
    Pillow.fromarray(np.full((72, 72), 90, np.uint8)).save(folder / "constant.png")
    (folder / "broken.png").write_bytes(b"DOE^JANE")
    return folder


@pytest.fixture(scope="module")
def found(train: Path) -> Recommendation:
    return recommend(train, methods=METHODS, jobs=0, use_cache=False)


def test_every_method_has_a_row_and_none_is_a_silent_nan(found: Recommendation, tmp_path: Path) -> None:
    out = found.save(tmp_path / "out")
    with (out / "ranking.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = [row["method"] for row in rows]
    assert set(METHODS) < set(names)
    assert sum(name.startswith("fusion of ") for name in names) == 2
    reasons = {row["method"]: row["reason"] for row in rows if row["status"] == "not_run"}
    assert set(reasons) == {"msp", "relative_mahalanobis"}
    assert "needs logits" in reasons["msp"]
    assert "needs labels" in reasons["relative_mahalanobis"]
    for row in rows:
        numbers = [row[key] for key in row if key.startswith(("mean", "auroc", "local", "whole", "form"))]
        assert all(v == "" for v in numbers) if row["reason"] else all(0 <= float(v) <= 1 for v in numbers)
    assert [int(row["rank"]) for row in rows if row["rank"]] == list(range(1, 7))


def test_anomalies_are_found_and_file_forms_are_not(found: Recommendation) -> None:
    best = found.standings[0]
    assert best.mean > 0.6
    assert best.areas["noise.4"] > 0.9
    assert abs(best.forms["png"] - 0.5) < 0.02


def test_the_page_stands_by_itself(found: Recommendation, tmp_path: Path) -> None:
    page = html.unescape((found.save(tmp_path / "out") / "index.html").read_text(encoding="utf-8"))
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert "default-src 'none'" in page
    assert "recommended" in page
    assert "needs logits" in page
    assert "nan" not in re.sub(r"<style>.*?</style>", "", page, flags=re.S).lower().split()


def test_the_recipe_can_be_fitted_and_the_gate_keeps_the_evidence(found: Recommendation, train: Path, tmp_path: Path) -> None:
    out = found.save(tmp_path / "out")
    recipe = recipes.read(str(out / "recipe.toml"))
    assert recipe == found.recipe
    gate = offmap.fit(train, recipe=str(out / "recipe.toml"), jobs=0, use_cache=False)
    assert isinstance(gate, Gate)
    gate.save(tmp_path / "gate")
    card = read_card(tmp_path / "gate")
    assert card["evidence"]["mean_auroc"] == found.recipe.evidence["mean_auroc"]
    assert card["evidence"]["images_tested"] == len(found.standings[0].one.scores["clean"])
    assert card["evidence"]["same_images"] is True
    assert "Evidence for the choice of detector" in text(card)
    assert offmap.load(tmp_path / "gate").recipe.evidence == found.recipe.evidence
    assert offmap.load(tmp_path / "gate").card["evidence"] == card["evidence"]


def test_the_same_seed_gives_the_same_numbers(found: Recommendation, train: Path) -> None:
    again = recommend(train, methods=METHODS[:3], jobs=1, use_cache=False)
    means = {s.one.name: s.mean for s in found.standings}
    assert all(means[s.one.name] == pytest.approx(s.mean, abs=1e-6) for s in again.standings if s.one.name in means)
    assert again.recipe.evidence["data_digest"] == found.recipe.evidence["data_digest"]


def test_files_that_cannot_be_used_are_counted(found: Recommendation) -> None:
    evidence = found.recipe.evidence
    assert evidence["images_fit"] + evidence["images_held_out"] + evidence["images_tested"] == 60
    assert any("2 files could not be used" in w and "constant" in w for w in found.ranking.warnings)


def test_copies_stay_in_one_part(tmp_path: Path) -> None:
    """Every image is there twice, the second time as JPEG of half its size: fitting on one and testing on the other would be a leak."""
    for i in range(48):
        large = Pillow.fromarray(picture(i, 144))
        large.save(tmp_path / f"{i:03d}.png")
        large.resize((72, 72)).save(tmp_path / f"{i:03d}.jpg", quality=90)
    network, plan = open_encoder("builtin"), recipes.read("standard")
    stream = Stream(network, plan.preparation(network.input.size), frozenset({"features.last"}), jobs=0, fingerprint=True, use_cache=False)
    run, data = _Run(tmp_path, "", plan, stream, 0, 1000, lambda event: None), Collected()
    with SignalStore(network.layers) as store:
        run._read(store, data, {})
    parts, units = run._divide(data)
    found = [{Path(data.kept[row].item).stem for row in rows} for rows in (parts.fit, parts.held_out, parts.test)]
    assert not found[0] & found[1] | found[0] & found[2] | found[1] & found[2]
    assert len(set.union(*found)) == 48
    assert len(set(units)) * 2 == len(units)


def test_arrays_go_in_too() -> None:
    array = np.stack([picture(i) for i in range(45)])
    found = recommend(array, axes="NHW", methods=("mahalanobis", "intensity"), jobs=0)
    assert {s.one.name for s in found.standings} == {"mahalanobis", "intensity"}


def test_a_method_that_breaks_gets_a_row_and_its_text_is_not_told(train: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: KNN, batches: Iterable[Signals], held_out: Any, generator: torch.Generator) -> Any:
        raise RuntimeError("DOE^JANE")

    monkeypatch.setattr(KNN, "learn", broken)
    found = recommend(train, methods=("knn", "mahalanobis"), jobs=0, use_cache=False)
    assert [s.one.name for s in found.standings] == ["mahalanobis"]
    assert {line.method: line.reason for line in found.ranking.lines}["knn"] == "RuntimeError while fitting or scoring"
    with pytest.raises(DataError, match=r"no method could be run: knn: RuntimeError"):
        recommend(train, methods=("knn",), jobs=0, use_cache=False)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"methods": ("mahalanobs",)}, ConfigError, "did you mean 'mahalanobis'"),
        ({"methods": ("knn", "knn")}, ConfigError, "named twice"),
        ({"methods": ("msp",)}, DataError, "no method can be run: msp needs logits"),
        ({"budget": "many"}, ConfigError, "budget = 'many'"),
        ({"limit": 39}, ConfigError, "at least 40"),
        ({"recipe": "standart"}, ConfigError, "did you mean 'standard'"),
    ],
)
def test_what_is_wrong_is_said_before_any_image_is_read(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        recommend("nowhere", **options)


def test_proxies_that_would_be_tested_are_refused(tmp_path: Path) -> None:
    """Fitting on noise and testing on noise would be a leak."""
    file = tmp_path / "leak.toml"
    file.write_text('[encoder]\nproxies = ["noise"]\n[prepare.window]\n[score.knn]\n')
    with pytest.raises(ConfigError, match="proxies noise are also what is tested"):
        recommend("nowhere", recipe=str(file))
    file.write_text("[score.knn]\n")
    with pytest.raises(ConfigError, match=r"\[prepare.window\]"):
        recommend("nowhere", recipe=str(file))


def test_what_costs_more_than_the_budget_is_not_run() -> None:
    network = open_encoder("builtin")

    def reasons(budget: str) -> list[str]:
        fused = Contestant("fused", Fusion(methods=("knn", "mahalanobis")))
        dear = Contestant("dear", Dear())
        screen([fused, dear], network, budget)
        return [fused.reason, dear.reason]

    assert reasons("1F") == ["", "takes 2F+1B an image, above the budget of 1F"]
    assert reasons("2F+1B") == reasons("any") == ["", ""]


def test_too_few_images_are_refused_with_what_was_dropped(tmp_path: Path) -> None:
    for i in range(12):
        Pillow.fromarray(picture(i)).save(tmp_path / f"{i}.png")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"12 images .*1 could not be used \(unreadable\).*At least 40"):
        recommend(tmp_path, methods=("mahalanobis",), jobs=0, use_cache=False)


def test_forty_copies_of_one_image_are_refused(tmp_path: Path) -> None:
    for i in range(45):
        Pillow.fromarray(picture(0)).save(tmp_path / f"{i}.png")
    with pytest.raises(DataError, match="copies"):
        recommend(tmp_path, methods=("mahalanobis",), jobs=0, use_cache=False)


def test_a_page_of_another_program_is_not_replaced(found: Recommendation, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<html>mine</html>")
    with pytest.raises(ConfigError, match="not written by offmap"):
        found.save(tmp_path)


@pytest.mark.parametrize("name", recipes.shipped())
def test_recipes_survive_being_written(name: str, tmp_path: Path) -> None:
    plan = dataclasses.replace(
        recipes.read(name), name="again", evidence={"note": 'a "quoted" \\ line\n\tünïcode', "interval": [0.5, 0.75], "n": 3}
    )
    (tmp_path / "again.toml").write_text(to_toml(plan, comment="two\nlines"), encoding="utf-8")
    assert recipes.read(str(tmp_path / "again.toml")) == plan


@pytest.mark.parametrize("line", ["a = 2026-01-01", "a = {b = 1}", "A = 1", "a = [[1]]", f'a = "{"x" * 501}"'])
def test_evidence_is_plain(line: str, tmp_path: Path) -> None:
    (tmp_path / "odd.toml").write_text(f"[score.knn]\n[evidence]\n{line}\n")
    with pytest.raises(ConfigError, match=r"\[evidence\]"):
        recipes.read(str(tmp_path / "odd.toml"))
