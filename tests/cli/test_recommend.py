"""offmap recommend from end to end."""

import json
from pathlib import Path

import numpy as np
import pytest
import typer.testing
from PIL import Image

from offmap.cli import app


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 soft ellipses."""
    folder, rng = tmp_path_factory.mktemp("cli") / "train", np.random.default_rng(1)
    folder.mkdir()
    y, x = np.mgrid[:64, :64] / 64 - 0.5
    for i in range(48):
        (cy, cx), (a, b) = rng.uniform(-0.08, 0.08, 2), rng.uniform(0.15, 0.3, 2)
        field = np.exp(-(((y - cy) / a) ** 2) - ((x - cx) / b) ** 2) + 0.05 * rng.standard_normal((64, 64))
        Image.fromarray(np.clip(200 * field + 20, 0, 255).astype(np.uint8)).save(folder / f"{i:03}.png")
    return folder


def run(*arguments: object) -> typer.testing.Result:
    return typer.testing.CliRunner().invoke(app, [str(a) for a in arguments])


def test_a_recipe_is_recommended_and_written(train: Path, tmp_path: Path) -> None:
    done = run("recommend", train, "--out", tmp_path / "out", "--methods", "mahalanobis,knn", "--jobs", 1)
    assert done.exit_code == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["index.html", "ranking.csv", "recipe.toml"]
    assert "mean AUROC" in done.stdout
    assert "Recommended: " in done.stderr
    assert "test images: few detectors can be told apart" in done.stderr


def test_with_json_every_line_is_an_event(train: Path, tmp_path: Path) -> None:
    done = run("recommend", train, "--out", tmp_path, "--methods", "mahalanobis", "--jobs", 1, "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert {e["event"] for e in events} == {"fit_read", "recommend_fit", "recommend_copies", "done"}
    assert events[-1]["method"] == "mahalanobis"
    assert events[-1]["evidence"]["images_tested"] >= 10


def test_what_is_wrong_is_one_line_and_a_code(train: Path, tmp_path: Path) -> None:
    unknown = run("recommend", train, "--out", tmp_path / "out", "--methods", "mahalanobs")
    assert unknown.exit_code == 2
    assert "did you mean 'mahalanobis'" in unknown.stderr
    few = run("recommend", train / "000.png", "--out", tmp_path / "out", "--methods", "mahalanobis", "--jobs", 1)
    assert few.exit_code == 3
    assert "1 images" not in few.stderr
    assert "At least 40 are needed" in few.stderr
    (tmp_path / "index.html").write_text("mine")
    assert run("recommend", train, "--out", tmp_path).exit_code == 2
