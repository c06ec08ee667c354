"""The recipe synthetic-anomaly: a gate that trains its network, keeps it, and shows where a pasted piece is."""

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
    "train.steps": "60",
    "train.batch": "8",
    "train.rate": "0.01",
    "train.warmup": "5",
    "train.check_every": "30",
    "train.average": "0.9",
}


def write(folder: Path, count: int, kind: str) -> Path:
    """Discs on black, the same with a bright square, or another modality: stripes all over."""
    folder.mkdir()
    y, x = np.mgrid[:24, :24] / 24 - 0.5
    for i in range(count):
        rng = np.random.default_rng(i)
        shown = 0.6 * (np.hypot(y - 0.05 * rng.standard_normal(), x - 0.05 * rng.standard_normal()) < 0.35)
        if kind == "stripes":
            shown = 0.5 + 0.5 * np.sin(40 * (x * np.cos(i) + y * np.sin(i)))
        values = 255 * np.clip(shown + 0.03 * rng.standard_normal((24, 24)), 0, 1)
        if kind == "square":
            values[8:13, 9:14] = 20
        Pillow.fromarray(values.astype(np.uint8)).save(folder / f"{i:03d}.png")
    return folder


def test_a_gate_keeps_its_network_and_flags_other_images(tmp_path: Path) -> None:
    discs, stripes = write(tmp_path / "discs", 110, "disc"), write(tmp_path / "stripes", 10, "stripes")
    gate = offmap.fit(discs, recipe="synthetic-anomaly", settings=SMALL, jobs=0)
    gate.save(tmp_path / "gate")
    again = offmap.load(tmp_path / "gate")
    rows = gate.score(stripes, jobs=0, use_cache=False).rows
    assert again.score(stripes, jobs=0, use_cache=False).rows == rows
    usual = gate.score(discs, jobs=0, use_cache=False).rows
    assert min(row["score"] for row in rows) > np.quantile([row["score"] for row in usual], 0.9)
    squares = gate.score(write(tmp_path / "squares", 10, "square"), jobs=0, use_cache=False).rows
    assert np.median([row["score"] for row in squares]) > np.quantile([row["score"] for row in usual], 0.9)
    assert gate.card["training"]["trainer"] == "synthetic_anomaly"
    assert gate.card["training"]["kept_step"] in (30, 60)


def test_five_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        offmap.fit(write(tmp_path / "few", 5, "disc"), recipe="synthetic-anomaly", settings=SMALL, jobs=0)
