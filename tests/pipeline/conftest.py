"""Small pictures made by code, and one gate fitted on them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

import offmap
from offmap.pipeline.gate import Gate


def picture(seed: int, *, stripes: bool = False, size: int = 72) -> np.ndarray:
    """A soft disc on a dark ground, or stripes; uint8 ``(size, size)``."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size - 0.5
    if stripes:
        field = 0.5 + 0.5 * np.sin(40 * x + rng.uniform(0, 6))
    else:
        cy, cx, r = rng.uniform(-0.1, 0.1), rng.uniform(-0.1, 0.1), rng.uniform(0.2, 0.35)
        field = 1 / (1 + np.exp(40 * (np.hypot(y - cy, x - cx) - r)))
    noisy = 0.1 + 0.7 * field + 0.05 * rng.standard_normal((size, size))
    return np.asarray((np.clip(noisy, 0, 1) * 255).round(), dtype=np.uint8)


def write(folder: Path, n: int, *, first: int = 0, stripes: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        Pillow.fromarray(picture(first + i, stripes=stripes)).save(folder / f"{i:03d}.png")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFMAP_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "discs", 60)


@pytest.fixture(scope="session")
def gate(discs: Path) -> Gate:
    return offmap.fit(discs, jobs=0, use_cache=False)
