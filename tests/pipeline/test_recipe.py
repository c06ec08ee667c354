"""Recipes: unknown keys are errors with the nearest name, settings are parsed by the field's type."""

from pathlib import Path

import pytest

from offmap.core.errors import ConfigError
from offmap.pipeline.recipe import read, shipped, with_choices


def test_the_shipped_recipes_resolve() -> None:
    for name in shipped():
        recipe = read(name)
        assert recipe.parts
        assert read(name).to_json() == recipe.to_json()


def test_volumes_change_what_the_recipe_says() -> None:
    recipe = read("vae", {"train.batch": "2"}, volumes=True)
    assert recipe.train is not None
    params = recipe.train.params()
    assert (params["size"], params["batch"]) == (32, 2)
    (resize,) = (step for step in recipe.preparation(32, 3).to_json() if step["method"] == "resize")
    assert (resize["size"], resize["depth"]) == (32, 32)
    for name in shipped():
        assert read(name, volumes=True).parts


def test_volumes_change_the_parts_that_are_there(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[score.knn]\nk = 3\n[volumes.score.knn]\nk = 5\n")
    assert [read(str(file), volumes=deep).parts["knn"].params()["k"] for deep in (False, True)] == [3, 5]
    assert "knn" not in str(read(str(file), cascade=("residual", "patchcore"), volumes=True).to_json()["score"])


def test_what_is_wrong_with_the_changes_for_volumes_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[score.knn]\n[volumes.score.knn]\nneighbours = 3\n[volumes.scores]\n")
    with pytest.raises(ConfigError, match=r"no table \[scores\]"):
        read(str(file), volumes=True)
    file.write_text("[score.knn]\n[volumes.score.knn]\nneighbours = 3\n")
    with pytest.raises(ConfigError, match="no parameter 'neighbours'"):
        read(str(file), volumes=True)
    file.write_text("volumes = true\n[score.knn]\n")
    with pytest.raises(ConfigError, match=r"\[volumes\] must be a table"):
        read(str(file))


def test_a_file_with_two_parts(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[score.near]\nmethod = "knn"\nk = 7\n[score.energy]\n[decide]\nalpha = 0.1\n')
    recipe = read(str(file))
    assert list(recipe.parts) == ["near", "energy"]
    assert recipe.parts["near"].params()["k"] == 7
    assert recipe.decide.reject_at == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[scores.knn]\n", r"no table \[scores\]; did you mean 'score'"),
        ("[score.knm]\n", "no method 'knm'; did you mean 'knn'"),
        ("[score.knn]\nkk = 3\n", r"\[score.knn\] has no parameter 'kk'; did you mean 'k'"),
        ('[score.knn]\nk = "three"\n', "wrong type"),
        ("[decide]\nalpha = 2\n[score.knn]\n", "alpha = 2.0 must lie"),
        ("[decide]\nalpha = 0.05\n", "scores nothing"),
        ("[calibrate]\nfolds = 1\n[score.knn]\n", "folds = 1 must lie"),
        ("[score\n", "not valid TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read(str(file))


def test_settings_are_parsed_by_type_and_checked() -> None:
    assert read("standard", {"decide.alpha": "0.01"}).decide.alpha == 0.01
    assert read("standard", {"calibrate.kind": "split"}).calibrate.kind == "split"
    with pytest.raises(ConfigError, match="did you mean 'calibrate'"):
        read("standard", {"calibrat.kind": "split"})
    with pytest.raises(ConfigError, match="needs a table"):
        read("standard", {"alpha": "0.01"})


def test_unknown_recipe_and_missing_file() -> None:
    with pytest.raises(ConfigError, match="did you mean 'standard'"):
        read("standart")
    with pytest.raises(ConfigError, match="cannot be read"):
        read("nowhere.toml")


def test_the_command_line_has_the_last_word() -> None:
    recipe = with_choices(read("standard"), encoder="hub:folder", layers=["a"], alpha=0.02)
    assert (recipe.encoder.spec, recipe.encoder.layers, recipe.decide.alpha) == ("hub:folder", ("a",), 0.02)
