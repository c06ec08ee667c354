"""MECAM end to end: exits added to a small network, a gate fitted with it, saved, loaded, scored, explained."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from safetensors.torch import save_file
from tests.pipeline.test_passes import Counted
from typer.testing import CliRunner

import offmap
from offmap.cli import app
from offmap.core.errors import BundleError, ConfigError, DataError, NotAvailableError
from offmap.pipeline.exits import add_exits
from offmap.represent.exits_file import save_exits
from offmap.represent.multi_exit import WithExits

STEPS = "[prepare.window]\n[prepare.crop]\n[prepare.resize]\nsize = 32\n[forms]\nrandom = false\n"
PARTS = "[score.mecam]\n[score.mean]\nmethod = 'mecam'\nfill = 'mean'\ndistance = 'relative'\nexits = [2]\n[score.energy]\n"


def recipe(folder: Path, parts: str = PARTS) -> str:
    file = folder / "mecam.toml"
    file.write_text(STEPS + parts)
    return str(file)


def picture(seed: int) -> np.ndarray:
    """A disc on the left (even seeds) or on the right."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :64] / 64 - 0.5
    centre = (-0.2, 0.2)[seed % 2] + 0.05 * rng.standard_normal()
    disc = np.hypot(y - 0.05 * rng.standard_normal(), x - centre) < 0.18
    return np.asarray(255 * np.clip(0.1 + 0.7 * disc + 0.03 * rng.standard_normal((64, 64)), 0, 1), dtype=np.uint8)


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pictures and the table of their labels."""
    folder = tmp_path_factory.mktemp("sides")
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label"])
        for i in range(40):
            Pillow.fromarray(picture(i)).save(folder / f"{i:02d}.png")
            table.writerow([f"{i:02d}.png", ("left", "right")[i % 2]])
    return folder


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png"))


def with_exits(sides: Path, plan: str, module: Counted) -> WithExits:
    return add_exits(files(sides)[:20], labels=sides / "labels.csv", recipe=plan, encoder=module, jobs=0)


def test_a_gate_with_exits_is_saved_loaded_and_explains(sides: Path, tmp_path: Path) -> None:
    module, plan = Counted(dropout=0.0).train(), recipe(tmp_path)
    encoder = with_exits(sides, plan, module)
    assert encoder.exits.layers == ("one", "two")
    gate = offmap.fit(files(sides)[20:], labels=sides / "labels.csv", recipe=plan, encoder=encoder, jobs=0)
    gate.save(tmp_path / "gate")
    module.seen = 0
    rows = gate.score(files(sides), jobs=0, use_cache=False).rows
    assert module.seen == 40 * 3
    assert all(r["status"] == "ok" and r["score.mecam"] < 0 and -1 < r["score.mean"] < 0 for r in rows)
    again = offmap.load(tmp_path / "gate", encoder=module)
    assert again.score(files(sides), jobs=0, use_cache=False).rows == rows
    found, same = (each.explain(files(sides)[3]) for each in (gate, again))
    assert found.map is not None
    assert same.map is not None
    assert found.map.shape == (64, 64)
    assert np.nanmin(found.map) >= 0
    assert np.nanmax(found.map) <= 1
    np.testing.assert_array_equal(found.map, same.map)
    assert found.row.parts["mecam"] == pytest.approx(rows[3]["score.mecam"], rel=1e-4)
    assert module.training


def test_the_gate_refuses_another_network_and_names_the_lack_of_one(sides: Path, tmp_path: Path) -> None:
    module, plan = Counted(dropout=0.0), recipe(tmp_path, "[score.mecam]\n")
    gate = offmap.fit(files(sides)[20:], recipe=plan, encoder=with_exits(sides, plan, module), jobs=0)
    gate.save(tmp_path / "gate")
    other = Counted(dropout=0.0)
    with torch.no_grad():
        other.fc.bias += 1
    with pytest.raises(BundleError, match="its scores would mean nothing"):
        offmap.load(tmp_path / "gate", encoder=other)
    with pytest.raises(BundleError, match="give it again"):
        offmap.load(tmp_path / "gate")


def test_the_built_in_encoder_with_exits_comes_back_from_the_gate_alone(sides: Path, tmp_path: Path) -> None:
    pixels = np.stack([picture(i) for i in range(40)])
    names = ["left", "right"] * 20
    plan = recipe(tmp_path, "[score.mecam]\nabove_chance = true\n[score.patchcore]\nmax_bank = 50\npool = 500\n")
    encoder = add_exits(pixels[:20], axes="NHW", labels=names[:20], recipe=plan, jobs=0)
    gate = offmap.fit(pixels[20:], axes="NHW", recipe=plan, encoder=encoder, jobs=0)
    gate.save(tmp_path / "gate")
    again = offmap.load(tmp_path / "gate")
    assert again.id == gate.id
    assert again.score(pixels, axes="NHW", jobs=0).rows == gate.score(pixels, axes="NHW", jobs=0).rows


def test_the_cache_does_not_mix_networks_with_other_exits(sides: Path, tmp_path: Path) -> None:
    module, plan = Counted(dropout=0.0), recipe(tmp_path, "[score.mecam]\n")
    one = with_exits(sides, plan, module)
    other = add_exits(files(sides)[20:], labels=sides / "labels.csv", recipe=plan, encoder=module, jobs=0)
    first, second = (offmap.fit(files(sides), recipe=plan, encoder=each, jobs=0).score(files(sides), jobs=0).rows for each in (one, other))
    assert [r["score.mecam"] for r in first] != [r["score.mecam"] for r in second]
    module.seen = 0
    repeated = offmap.fit(files(sides), recipe=plan, encoder=one, jobs=0)
    assert repeated.score(files(sides), jobs=0).rows == first


def test_classes_follow_their_names_whatever_the_order_of_files(sides: Path, tmp_path: Path) -> None:
    module, plan = Counted(dropout=0.0), recipe(tmp_path)
    one = with_exits(sides, plan, module)
    turned = add_exits(files(sides)[:20][::-1], labels=sides / "labels.csv", recipe=plan, encoder=module, jobs=0)
    for weight, other in zip(one.exits.weights, turned.exits.weights, strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-2, atol=1e-4)


def test_what_is_lacking_is_named_before_any_file_is_read(sides: Path, tmp_path: Path) -> None:
    plan = recipe(tmp_path, "[score.mecam]\n")
    with pytest.raises(ConfigError, match=r"\[score.mecam\] mecam needs mecam\.features.*Add exits to the network first"):
        offmap.fit(tmp_path / "nothing", recipe=plan, encoder=Counted(), jobs=0)
    encoder = with_exits(sides, plan, Counted(dropout=0.0))
    with pytest.raises(ConfigError, match="exits = 3 must be digits from 1 to 2"):
        offmap.fit(tmp_path / "nothing", recipe=recipe(tmp_path, "[score.mecam]\nexits = [3]\n"), encoder=encoder, jobs=0)


def test_labels_that_do_not_fit_are_named(sides: Path, tmp_path: Path) -> None:
    module, plan, pixels = Counted(), recipe(tmp_path), np.stack([picture(i) for i in range(4)])
    with pytest.raises(ConfigError, match="4 of 4 images have no label"):
        add_exits(files(sides)[:4], recipe=plan, encoder=module, jobs=0)
    with pytest.raises(ConfigError, match="two classes or more"):
        add_exits(files(sides)[:4:2], labels=sides / "labels.csv", recipe=plan, encoder=module, jobs=0)
    with pytest.raises(ConfigError, match="one name for each image"):
        add_exits(pixels, axes="NHW", labels=sides / "labels.csv", recipe=plan, encoder=module, jobs=0)
    with pytest.raises(ConfigError, match="4 images, 3 labels"):
        add_exits(pixels, axes="NHW", labels=["a", "b", "a"], recipe=plan, encoder=module, jobs=0)
    with pytest.raises(ConfigError, match="a CSV with the columns"):
        add_exits(files(sides)[:4], labels=["a", "b"], recipe=plan, encoder=module, jobs=0)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="could be read"):
        add_exits(tmp_path / "broken.png", recipe=plan, encoder=module, jobs=0)


def test_exits_in_a_file_are_named_in_the_recipe(sides: Path, tmp_path: Path) -> None:
    file, plan = tmp_path / "exits.safetensors", recipe(tmp_path, "[score.mecam]\n")
    ran = CliRunner().invoke(
        app, ["add-exits", *map(str, files(sides)[:20]), "--labels", str(sides / "labels.csv"), "--recipe", plan, "--out", str(file)]
    )
    assert ran.exit_code == 0, ran.output
    assert "Exits for 2 classes at stages.0, stages.1, stages.2, stages.3 of builtin" in ran.output
    given = recipe(tmp_path, f'[score.mecam]\n[encoder]\nexits = "{file}"\n')
    gate = offmap.fit(files(sides)[20:], recipe=given, jobs=0)
    gate.save(tmp_path / "gate")
    file.unlink()
    rows = offmap.load(tmp_path / "gate").score(files(sides), jobs=0).rows
    assert rows == gate.score(files(sides), jobs=0).rows
    assert all(r["score.mecam"] < 0 for r in rows)


def test_files_that_hold_no_exits_of_the_network_are_named(sides: Path, tmp_path: Path) -> None:
    file = tmp_path / "exits.safetensors"
    plan = recipe(tmp_path, f'[score.mecam]\n[encoder]\nexits = "{file}"\n')
    with pytest.raises(NotAvailableError, match="there is no such file; `offmap add-exits` makes one"):
        offmap.fit(tmp_path / "nothing", recipe=plan, encoder=Counted(), jobs=0)
    save_file({"weight": torch.zeros(2, 2)}, file)
    with pytest.raises(ConfigError, match="holds no exits: KeyError 'layers'"):
        offmap.fit(tmp_path / "nothing", recipe=plan, encoder=Counted(), jobs=0)
    save_exits(with_exits(sides, recipe(tmp_path, "[score.mecam]\n"), Counted(dropout=0.0)), file)
    plan = recipe(tmp_path, f'[score.mecam]\n[encoder]\nexits = "{file}"\n')
    with pytest.raises(ConfigError, match="were trained on a network with SHA-256"):
        offmap.fit(tmp_path / "nothing", recipe=plan, jobs=0)
    ran = CliRunner().invoke(app, ["add-exits", str(sides), "--out", str(tmp_path / "exits.pt")])
    assert ran.exit_code == 2
    assert "exits are kept in a .safetensors file" in ran.output


@pytest.mark.parametrize("kind", ["vit", "dinov2_with_registers", "siglip"])
def test_a_transformer_gets_exits_on_its_blocks(kind: str, sides: Path, tmp_path: Path) -> None:
    """From the folder of a model to scores and a map made of its patch tokens; the gate alone is enough afterwards."""
    from tests.represent.test_hub import MODELS, drawn, saved

    folder = saved(drawn(MODELS[kind][0]()), tmp_path / "model")
    exits, given = tmp_path / "exits.safetensors", ["--labels", str(sides / "labels.csv"), "--encoder", f"hub:{folder}"]
    plan = tmp_path / "plan.toml"
    plan.write_text(
        f'[encoder]\nspec = "hub:{folder}"\nexits = "{exits}"\n[prepare.resize]\nsize = "encoder"\n[score.mecam]\n[score.knn]\n'
    )
    prepare = tmp_path / "prepare.toml"
    prepare.write_text('[prepare.resize]\nsize = "encoder"\n[score.knn]\n')
    ran = CliRunner().invoke(app, ["add-exits", *map(str, files(sides)[:20]), *given, "--recipe", str(prepare), "--out", str(exits)])
    assert ran.exit_code == 0, ran.output
    assert "Exits for 2 classes at layer.1, layer.2, layer.3, final" in ran.output
    gate = offmap.fit(files(sides)[20:], recipe=str(plan), jobs=0)
    gate.save(tmp_path / "gate")
    rows = gate.score(files(sides), jobs=0).rows
    assert all(r["score.mecam"] < 0 for r in rows)
    exits.unlink()
    shutil.rmtree(folder)
    again = offmap.load(tmp_path / "gate")
    assert again.score(files(sides), jobs=0).rows == rows
    shown = again.explain(files(sides)[0]).map
    assert shown is not None
    assert shown.shape == (64, 64)
    assert 0 <= np.nanmin(shown) < np.nanmax(shown) <= 1
