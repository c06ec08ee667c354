"""Recipes that train a network on whole volumes: fit, keep, score, map; what is refused, and what is not assessed."""

from pathlib import Path

import numpy as np
import pytest

import offmap
from offmap.core.errors import ConfigError

pytest.importorskip("monai", reason="needs the extra [generative]")
pytest.importorskip("einops", reason="needs the extra [generative]")
nibabel = pytest.importorskip("nibabel", reason="NIfTI files are read with nibabel")

SHORT = {"train.size": "16", "train.widths": "[8, 16]", "train.steps": "6", "train.batch": "4", "train.check_every": "3"}
SHAPE = (20, 18, 16)
"""Of a volume as read, in the order of (D, H, W)."""


def ball(i: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """A noisy ball in the middle, as NIfTI has it: first axis last."""
    rng = np.random.default_rng(i)
    places = np.meshgrid(*(np.linspace(-0.5, 0.5, n) for n in shape), indexing="ij")
    away = np.sqrt(sum((p - 0.05 * rng.standard_normal()) ** 2 for p in places))
    return np.clip(0.8 * (away < 0.3) + 0.03 * rng.standard_normal(shape), 0, 1).T


def written(folder: Path, volumes: dict[str, np.ndarray]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, voxels in volumes.items():
        nibabel.save(nibabel.Nifti1Image(voxels.astype(np.float32), np.eye(4)), folder / f"{name}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def balls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("volumes") / "balls", {f"{i:03d}": ball(i) for i in range(50)})


RECIPES: dict[str, dict[str, str]] = {
    "vae": {},
    "dae": {},
    "generative": {},
    "gan": {"train.latent": "8"},
    "diffusion": {"score.msma.levels": "3", "score.msma.components": "1"},
    "latent-diffusion": {"train.code_steps": "4", "train.code_widths": "[8, 16]", "score.msma.levels": "3"},
    "synthetic-anomaly": {},
}


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_a_gate_of_volumes_scores_the_same_after_saving(recipe: str, balls: Path, tmp_path: Path) -> None:
    gate = offmap.fit(balls, recipe=recipe, volumes=True, settings={**SHORT, **RECIPES[recipe]}, jobs=0)
    assert gate.encoder.input.sides == (16, 16, 16)
    gate.save(tmp_path / "gate")
    again = offmap.load(tmp_path / "gate")
    odd = written(tmp_path / "odd", {"big": np.random.default_rng(0).random((31, 33, 20)), "usual": ball(99)})
    rows = gate.score(odd, jobs=0, use_cache=False).rows
    assert again.score(odd, jobs=0, use_cache=False).rows == rows
    assert all(np.isfinite(row["score"]) for row in rows)
    if gate.scorer.maps:
        again.score_to([odd], tmp_path / "s.csv", maps=tmp_path / "maps", jobs=0)
        maps = [np.load(path) for path in sorted((tmp_path / "maps").glob("*.npy"))]
        assert {found.shape for found in maps} <= {(20, 33, 31), SHAPE}
        assert all(np.isfinite(found).any() for found in maps)


def test_recipes_whose_networks_see_images_say_so() -> None:
    with pytest.raises(ConfigError, match="--volumes does not go with train:multi_exit, whose network sees images of two axes"):
        offmap.fit("nowhere", recipe="mecam", volumes=True)
