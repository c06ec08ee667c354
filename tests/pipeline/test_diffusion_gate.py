"""The recipe diffusion: a gate that trains its model, keeps it, and flags what the model never saw."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

import offmap
from offmap.core.errors import DataError

pytest.importorskip("monai", reason="needs the extra [generative]")
pytest.importorskip("einops", reason="needs the extra [generative]")

SMALL = {
    "train.size": "16",
    "train.widths": "[8, 16]",
    "train.steps": "60",
    "train.batch": "8",
    "train.rate": "0.005",
    "train.warmup": "5",
    "train.check_every": "30",
    "score.msma.levels": "5",
    "score.msma.components": "1",
}


def write(folder: Path, count: int, kind: str) -> Path:
    """Discs on black, or another modality: stripes all over."""
    folder.mkdir()
    y, x = np.mgrid[:24, :24] / 24 - 0.5
    for i in range(count):
        rng = np.random.default_rng(i)
        disc = 0.8 * (np.hypot(y - 0.05 * rng.standard_normal(), x - 0.05 * rng.standard_normal()) < 0.3)
        shown = disc if kind == "disc" else 0.5 + 0.5 * np.sin(40 * (x * np.cos(i) + y * np.sin(i)))
        values = 255 * np.clip(shown + 0.03 * rng.standard_normal((24, 24)), 0, 1)
        Pillow.fromarray(values.astype(np.uint8)).save(folder / f"{i:03d}.png")
    return folder


def test_a_gate_keeps_its_model_and_flags_a_modality_that_the_model_never_saw(tmp_path: Path) -> None:
    discs, stripes = write(tmp_path / "discs", 110, "disc"), write(tmp_path / "stripes", 10, "stripes")
    gate = offmap.fit(discs, recipe="diffusion", settings=SMALL, jobs=0)
    gate.save(tmp_path / "gate")
    again = offmap.load(tmp_path / "gate")
    rows = gate.score(stripes, jobs=0, use_cache=False).rows
    assert again.score(stripes, jobs=0, use_cache=False).rows == rows
    usual = gate.score(discs, jobs=0, use_cache=False).rows
    assert min(row["score"] for row in rows) > np.quantile([row["score"] for row in usual], 0.9)
    assert all(row["verdict"] != "accept" for row in rows)
    assert gate.card["training"]["trainer"] == "diffusion"


def test_five_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        offmap.fit(write(tmp_path / "few", 5, "disc"), recipe="diffusion", settings=SMALL, jobs=0)


def test_a_cascade_trains_its_second_network_and_keeps_both(tmp_path: Path) -> None:
    discs, stripes = write(tmp_path / "discs", 110, "disc"), write(tmp_path / "stripes", 10, "stripes")
    settings = {f"second.{key}" if key.startswith("train.") else key: value for key, value in SMALL.items()}
    gate = offmap.fit(discs, cascade=("standard", "diffusion"), settings=settings, jobs=0)
    gate.save(tmp_path / "gate")
    again = offmap.load(tmp_path / "gate")
    rows = gate.score(stripes, jobs=0, use_cache=False).rows
    assert again.score(stripes, jobs=0, use_cache=False).rows == rows
    assert all(row["verdict"] != "accept" for row in rows)
    assert gate.card["encoder"]["name"] == "builtin + train:diffusion"
    assert gate.card["training"]["trainer"] == "diffusion"
    cost = gate.card["cascade"]
    assert cost["ms_first"] < cost["ms_mean"] < cost["ms_first"] + cost["ms_then"]


def test_there_is_no_confident_map_of_a_modality_that_the_model_never_saw(tmp_path: Path) -> None:
    discs, stripes = write(tmp_path / "discs", 110, "disc"), write(tmp_path / "stripes", 6, "stripes")
    recipe = tmp_path / "map.toml"
    steps = '[prepare.window]\n[prepare.crop]\n[prepare.resize]\nsize = "encoder"\n'
    recipe.write_text(f'[encoder]\nspec = "train:diffusion"\n{steps}[score.gepc]\nlevels = 2\n')
    settings = {key: value for key, value in SMALL.items() if key.startswith("train.")}
    gate = offmap.fit(discs, recipe=str(recipe), settings=settings, jobs=0)
    summary = gate.score_to([discs, stripes], tmp_path / "s.csv", maps=tmp_path / "maps", jobs=0)
    drawn = {int(path.stem) for path in (tmp_path / "maps").glob("*.npy")}
    assert not drawn & set(range(110, 116))
    assert len(drawn & set(range(110))) > 100
    assert summary.withheld == 116 - len(drawn)
    explained = gate.explain(stripes / "000.png")
    assert explained.withheld
    assert explained.map is None
    assert explained.row.verdict != "accept"
