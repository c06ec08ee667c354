"""The recipes vae and dae: gates that train their network, keep it, flag what it never saw, and say where."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

import offmap
from offmap.core.errors import DataError

pytest.importorskip("monai", reason="needs the extra [generative]")

SMALL = {
    "train.size": "16",
    "train.widths": "[8, 16]",
    "train.steps": "40",
    "train.batch": "8",
    "train.rate": "0.005",
    "train.warmup": "5",
    "train.check_every": "20",
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


@pytest.mark.parametrize("recipe", ["vae", "dae"])
def test_a_gate_keeps_its_network_and_flags_a_modality_that_the_network_never_saw(recipe: str, tmp_path: Path) -> None:
    discs, stripes = write(tmp_path / "discs", 80, "disc"), write(tmp_path / "stripes", 6, "stripes")
    gate = offmap.fit(discs, recipe=recipe, settings=SMALL, jobs=0)
    gate.save(tmp_path / "gate")
    again = offmap.load(tmp_path / "gate")
    rows = gate.score(stripes, jobs=0, use_cache=False).rows
    assert again.score(stripes, jobs=0, use_cache=False).rows == rows
    usual = gate.score(discs, jobs=0, use_cache=False).rows
    assert min(row["score"] for row in rows) > np.quantile([row["score"] for row in usual], 0.9)
    assert gate.card["training"]["trainer"] == recipe
    found = gate.explain(stripes / "000.png")
    assert found.map is not None
    assert found.map.shape == (24, 24)


@pytest.mark.parametrize("recipe", ["vae", "dae"])
def test_five_images_are_refused(recipe: str, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        offmap.fit(write(tmp_path / "few", 5, "disc"), recipe=recipe, settings=SMALL, jobs=0)
