"""A gate whose network learns the feature maps of the built-in encoder: it keeps both, other detectors run beside it, and it has a map."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

import offmap
from offmap.core.errors import DataError

RECIPE = """
[encoder]
spec = "train:rd4ad"

[train]
size = 32
width = 8
steps = 20
batch = 8
warmup = 2
check_every = 10

[prepare.resize]
size = "encoder"

[score.rd4ad]

[score.padim]
channels = 8
"""


def write(folder: Path, count: int, kind: str) -> Path:
    """Discs on black, or stripes all over."""
    folder.mkdir()
    y, x = np.mgrid[:40, :40] / 40 - 0.5
    for i in range(count):
        rng = np.random.default_rng(i)
        disc = 0.8 * (np.hypot(y - 0.05 * rng.standard_normal(), x - 0.05 * rng.standard_normal()) < 0.3)
        shown = disc if kind == "disc" else 0.5 + 0.5 * np.sin(40 * (x * np.cos(i) + y * np.sin(i)))
        values = 255 * np.clip(shown + 0.03 * rng.standard_normal((40, 40)), 0, 1)
        Pillow.fromarray(values.astype(np.uint8)).save(folder / f"{i:03d}.png")
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE)
    return str(file)


def test_a_gate_keeps_encoder_and_network_and_draws_a_map(tmp_path: Path, recipe: str) -> None:
    discs, stripes = write(tmp_path / "discs", 110, "disc"), write(tmp_path / "stripes", 6, "stripes")
    gate = offmap.fit(discs, recipe=recipe, jobs=0)
    gate.save(tmp_path / "gate")
    again = offmap.load(tmp_path / "gate")
    rows = gate.score(stripes, jobs=0, use_cache=False).rows
    assert again.score(stripes, jobs=0, use_cache=False).rows == rows
    usual = gate.score(discs, jobs=0, use_cache=False).rows
    for name in ("score.rd4ad", "score.padim"):
        assert min(row[name] for row in rows) > np.median([row[name] for row in usual])
    assert all(row["verdict"] != "accept" for row in rows)
    assert gate.card["training"]["base"] == "builtin"
    shown = again.explain(stripes / "000.png").map
    assert shown is not None
    assert shown.shape == (40, 40)


def test_five_images_are_refused(tmp_path: Path, recipe: str) -> None:
    with pytest.raises(DataError):
        offmap.fit(write(tmp_path / "few", 5, "disc"), recipe=recipe, jobs=0)
