"""How well networks of whole volumes find drawn lesions and volumes of another kind, and what they cost.

    python benchmarks/volumes.py diffusion:steps=600 vae:steps=1000 standard

Hippocampus MR of MSD Task04: 200 volumes make the gate, 60 others are scored, as they are and with one lesion each; beside them, volumes of
other organs. Each argument is a recipe with changes of its table [train]; in half precision, one thread. The times are of this process
alone (CPU seconds), so that a busy machine does not count.
"""

import argparse
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np
import torch
from results import Made, markdown, write_csv, write_markdown

import offmap
from offmap.benchmark import metrics
from offmap.datasets import local
from offmap.pipeline.gate import Gate
from offmap.simulate.lesions import LesionRanges, plant_lesion

RANGES = LesionRanges(radius=(0.1, 0.2), contrast=(0.3, 0.5))
"""Easy to see in a slice."""


def damaged(files: list[Path], folder: Path) -> list[Path]:
    """Copies with one lesion each, at the size of the file."""
    for i, file in enumerate(files):
        image = nibabel.load(file)
        voxels = np.asarray(image.dataobj).astype(np.float32)
        low, high = np.percentile(voxels, (0.5, 99.5))
        unit = np.clip((voxels - low) / (high - low), 0, 1)[None]
        planted = plant_lesion(unit, rng=np.random.default_rng(i), ranges=RANGES)
        changed = np.where(planted.mask, planted.pixels[0] * (high - low) + low, voxels)
        nibabel.save(nibabel.Nifti1Image(changed.astype(np.float32), image.affine), folder / f"{i:03d}.nii.gz")
    return sorted(folder.iterdir())


def scores(gate: Gate, files: list[Path]) -> tuple[np.ndarray, float]:
    """Of the volumes that were assessed; CPU milliseconds a volume."""
    start = time.process_time()
    rows = gate.score(files, jobs=0, use_cache=False).rows
    took = 1000 * (time.process_time() - start) / len(files)
    return np.array([row["score"] for row in rows if row["status"] == "ok"]), took


def measured(asked: str, train: list[Path], test: list[Path], odd: list[Path], other: list[Path]) -> dict[str, object]:
    """One row."""
    name, _, changes = asked.partition(":")
    own = dict(part.split("=", 1) for part in changes.split(",") if part)
    settings = {f"train.{key}": value for key, value in own.items()}
    settings |= {} if name == "standard" else {"train.precision": "bfloat16"}
    start = time.process_time()
    gate = offmap.fit(train, recipe=name, settings=settings, volumes=True, jobs=0, use_cache=False)
    fitted = time.process_time() - start
    (usual, took), (strange, _), (foreign, _) = (scores(gate, files) for files in (test, odd, other))
    return {
        "recipe": asked,
        "lesions": metrics.auroc(usual, strange),
        f"other organs (n = {len(foreign)})": metrics.auroc(usual, foreign),
        "cpu ms": f"{took:.0f}",
        "to fit, cpu s": f"{fitted:.0f}",
    }


def main() -> None:
    """Measure and write ``results/volumes``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="+")
    asked = parser.parse_args().recipes
    torch.set_num_threads(1)
    root = local.find()
    if root is None:
        parser.error("the shared data are not here")
    files = sorted((root / "volumes" / "hippocampus_mr").iterdir())
    files = [files[i] for i in np.random.default_rng(0).permutation(len(files))]
    rows, out = [], Path(__file__).parent / "results"
    with tempfile.TemporaryDirectory() as folder:
        odd = damaged(files[200:], Path(folder))
        for one in asked:
            rows.append(measured(one, files[:200], files[200:], odd, sorted((root / "volumes" / "other").iterdir())))
            write_csv(out / "volumes.csv", rows)
            write_markdown(out / "volumes.md", "Networks of whole volumes, hippocampus MR", markdown(rows), Made.now())


if __name__ == "__main__":
    main()
