"""A set of images made by the tests, with a table of labels, and a small encoder that sees it quickly."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from offmap.core.encoder import Encoder, Input

SIZE = 32
COLUMNS = ("path", "plane", "machine", "sex", "person")
TEXT = """
name = "toy"
description = "Bright spots."
patient = "person"
seeds = [1, 2]
repeats = 100
hidden = 8
steps = 400
passes = 5
members = 2
[images]
table = "table.csv"
[id]
where = { plane = ["head", "heart"], machine = ["A", "B"] }
[[task]]
name = "plane"
column = "plane"
clinical = true
[[task]]
name = "machine"
column = "machine"
[[task]]
name = "side"
made = "laterality flip"
[[shift]]
name = "other machine"
kind = "image_characteristics"
where = { plane = ["head", "heart"], machine = "C" }
[[shift]]
name = "damaged"
kind = "image_characteristics"
damage = "noise"
severity = 5
[[shift]]
name = "foot"
kind = "semantic"
where = { plane = "foot" }
"""


class Pixels(nn.Module):
    """A map of the pixels, smoothed, and of their edges."""

    def forward(self, pixels: Tensor) -> Tensor:
        grey = pixels[:, :1]
        edges = (grey - functional.avg_pool2d(grey, 3, 1, 1)).abs()
        return torch.cat([functional.avg_pool2d(part, 4) for part in (grey, edges)], dim=1)


class Quick(Encoder):
    """An encoder that costs nothing."""

    name, layers, provides = "quick", ("deep",), frozenset({"features.deep"})
    input, sha256 = Input(SIZE, 3, (0.5,) * 3, (0.25,) * 3), "quick"

    def backbone(self) -> nn.Module:
        return Pixels()

    def encode(self, images: Tensor, needs: frozenset[str]) -> dict[str, Tensor]:
        return {}

    def to(self, device: torch.device | str) -> "Quick":
        return self

    def state(self) -> None:
        return None

    def config(self) -> dict[str, object]:
        return {"name": self.name}


def picture(plane: str, machine: str, rng: np.random.Generator) -> np.ndarray:
    """A spot whose place is the plane, on a ground whose grain is the machine's."""
    y, x = np.mgrid[0:64, 0:64] / 64
    top, left = {"head": (0.25, 0.3), "heart": (0.7, 0.3), "foot": (0.5, 0.8)}[plane]
    spot = np.exp(-(((y - top - rng.normal(0, 0.03)) ** 2 + (x - left - rng.normal(0, 0.03)) ** 2) / 0.01))
    grain = {"A": 0.02, "B": 0.08, "C": 0.2}[machine]
    return np.clip(60 + 150 * spot + 255 * grain * rng.normal(size=(64, 64)), 0, 255).astype(np.uint8)


def write(folder: Path, *, rows: Sequence[Sequence[str]] | None = None, delimiter: str = ",", columns: Sequence[str] = COLUMNS) -> Path:
    """Images, ``table.csv`` and ``toy.toml``; the path of the study."""
    rng = np.random.default_rng(0)
    plan = [(plane, machine) for plane in ("head", "heart") for machine in ("A", "B") for _ in range(20)]
    plan += [(plane, "C") for plane in ("head", "heart") for _ in range(8)] + [
        ("foot", machine) for machine in ("A", "B") for _ in range(8)
    ]
    made = []
    (folder / "im").mkdir()
    for i, (plane, machine) in enumerate(plan):
        Image.fromarray(picture(plane, machine, rng)).save(folder / "im" / f"{i:03d}.png")
        made.append((f"im/{i:03d}.png", plane, machine, "fm"[machine == "A"], f"p{i // 2}"))
    table(folder, made if rows is None else rows, delimiter=delimiter, columns=columns)
    (folder / "toy.toml").write_text(TEXT)
    return folder / "toy.toml"


def table(folder: Path, rows: Sequence[Sequence[str]], *, delimiter: str = ",", columns: Sequence[str] = COLUMNS) -> None:
    """The table of a folder."""
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(columns)
        writer.writerows(rows)


def rows_of(folder: Path) -> list[list[str]]:
    """Rows of the table."""
    with (folder / "table.csv").open(newline="") as file:
        return list(csv.reader(file))[1:]
