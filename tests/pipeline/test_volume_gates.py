"""Recipes that train a network on whole volumes: fit, keep, score, map; what is refused, and what is not assessed."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from scipy import ndimage

import offmap
from offmap.core.errors import ConfigError, DataError
from offmap.datasets.local import find
from offmap.pipeline import training
from offmap.represent.autoencoder import AutoencoderEncoder
from offmap.represent.diffusion import DiffusionEncoder
from offmap.represent.nets.autoencoder import AutoencoderShape, autoencoder
from offmap.represent.nets.unet import EDMDenoiser, UNetShape

pytest.importorskip("monai", reason="needs the extra [generative]")
pytest.importorskip("einops", reason="needs the extra [generative]")
nibabel = pytest.importorskip("nibabel", reason="NIfTI files are read with nibabel")

SHORT = {"train.size": "8", "train.widths": "[8, 16]", "train.steps": "6", "train.batch": "4", "train.check_every": "3"}
SHAPE = (20, 18, 16)
"""Of a volume as read, in the order of (D, H, W)."""


def ball(i: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """A grainy ball in the middle, as NIfTI has it: first axis last."""
    rng = np.random.default_rng(i)
    places = np.meshgrid(*(np.linspace(-0.5, 0.5, n) for n in shape), indexing="ij")
    away = np.sqrt(sum((p - 0.05 * rng.standard_normal()) ** 2 for p in places))
    grain = ndimage.zoom(rng.standard_normal((6, 6, 6)), [n / 6 for n in shape], order=1)
    return np.clip(0.5 * (away < 0.3) + 0.15 * grain + 0.2, 0, 1).T


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
    assert gate.encoder.input.sides == (8, 8, 8)
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


def test_choices_that_volumes_rule_out_are_named_before_a_file_is_read(tmp_path: Path) -> None:
    measure = {"score.reconstruction.measure": "perceptual", "train.size": "16", "train.widths": "[8, 16]"}
    with pytest.raises(ConfigError, match=r"\[score.reconstruction\] .* such as --set score.reconstruction.measure=ssim"):
        offmap.fit("nowhere", recipe="vae", volumes=True, settings=measure)
    flat, deep = (DiffusionEncoder(EDMDenoiser(UNetShape(1, axes, (8, 16)), 0.5), 16) for axes in (2, 3))
    recipe = tmp_path / "own.toml"
    recipe.write_text('[prepare.window]\n[prepare.crop]\n[prepare.resize]\nsize = "encoder"\n[score.msma]\nlevels = 3\n')
    with pytest.raises(ConfigError, match="was trained on volumes, not on images: give --volumes"):
        offmap.fit("nowhere", recipe=str(recipe), encoder=deep)
    with pytest.raises(ConfigError, match="a model of images of two axes without features of slices"):
        offmap.fit("nowhere", recipe=str(recipe), encoder=flat, volumes=True)
    for name in ("feature_flow", "invad", "rd4ad", "simplenet"):
        recipe.write_text(f'[encoder]\nspec = "train:{name}"\n[score.{name}]\n')
        with pytest.raises(ConfigError, match=f"train:{name}: it learns the feature maps of the frozen encoder builtin"):
            offmap.fit("nowhere", recipe=str(recipe), volumes=True)


def test_a_model_of_volumes_that_is_there_is_used_as_it_is(balls: Path, tmp_path: Path) -> None:
    AutoencoderEncoder(autoencoder(AutoencoderShape("vae", 1, (8, 8, 8), (8, 16)))).save(tmp_path / "model")
    recipe = tmp_path / "own.toml"
    recipe.write_text('[prepare.window]\n[prepare.resize]\nsize = "encoder"\n[score.reconstruction]\n')
    settings = {"encoder.spec": f"autoencoder:{tmp_path / 'model'}"}
    gate = offmap.fit(balls, recipe=str(recipe), volumes=True, settings=settings, jobs=0, limit=16)
    assert gate.encoder.input.sides == (8, 8, 8)
    found = gate.explain(balls / "000.nii.gz")
    assert found.map is not None
    assert found.map.shape == SHAPE
    assert "8 slices of 8 x 8 pixels" in " ".join(gate.card["prepare"])
    assert gate.card["encoder"]["input"] == "8 x 8 x 8 voxels"


def test_what_is_no_volume_that_the_network_can_see_is_not_assessed(balls: Path, tmp_path: Path) -> None:
    gate = offmap.fit(balls, recipe="vae", volumes=True, settings=SHORT, jobs=0)
    holes = ball(3)
    holes[2, 2, 2] = np.nan
    folder = written(
        tmp_path / "new", {"flat": ball(1, (1, 18, 18)), "nan": holes, "tiny": ball(2, (9, 9, 9)), "two": ball(4, (2, 17, 40))}
    )
    Pillow.fromarray((255 * ball(5)[0]).astype(np.uint8)).save(folder / "zz.png")
    rows = gate.score(folder, jobs=0, use_cache=False).rows
    assert [(row["status"], row["reason"]) for row in rows] == [
        ("not_assessed", "small"),
        ("not_assessed", "non_finite"),
        ("not_assessed", "small"),
        ("ok", None),
        ("not_assessed", "small"),
    ]


def test_volumes_that_cannot_be_trained_on_are_refused(balls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="12 images; to train and to test a network at least 16"):
        offmap.fit(balls, recipe="vae", volumes=True, settings=SHORT, jobs=0, limit=12)
    with pytest.raises(ConfigError, match=r"size = 3 must lie in 8..512|smaller than the stride"):
        offmap.fit(balls, recipe="vae", volumes=True, settings={**SHORT, "train.size": "3"}, jobs=0)
    with pytest.raises(ConfigError, match="items of 8 x 24 x 24 were prepared, and a network for 8 x 8 x 8 is to be trained"):
        offmap.fit(balls, recipe="vae", volumes=True, settings={**SHORT, "prepare.resize.size": "24"}, jobs=0)
    stack = np.stack([ball(i, (16, 16, 16)) for i in range(30)])
    with pytest.raises(ConfigError, match="a network for 8 x 8 is to be trained: give --volumes"):
        offmap.fit(stack, axes="NDHW", recipe="vae", settings=SHORT, jobs=0)
    with pytest.raises(DataError, match="small"):
        offmap.fit(stack[:, 0], axes="NHW", recipe="vae", volumes=True, settings=SHORT, jobs=0)
    monkeypatch.setattr(training, "_installed", lambda: 10_000)
    with pytest.raises(ConfigError, match=r"50 items of 8 x 8 x 8 would fill 0.0 GB of memory, .* with --limit"):
        offmap.fit(balls, recipe="vae", volumes=True, settings=SHORT, jobs=0)


def test_an_array_of_volumes_works_as_files_do(tmp_path: Path) -> None:
    stack = np.stack([ball(i, (17, 16, 19)).T for i in range(40)])
    gate = offmap.fit(stack, axes="NDHW", recipe="dae", volumes=True, settings=SHORT, jobs=0)
    rows = gate.score(stack[:3], axes="NDHW").rows
    assert [row["status"] for row in rows] == ["ok"] * 3


def test_real_volumes(tmp_path: Path) -> None:
    folder = find()
    if folder is None or not (folder / "volumes" / "hippocampus_mr").is_dir():
        pytest.skip("the volumes of the shared data are not here")
    files = sorted((folder / "volumes" / "hippocampus_mr").iterdir())
    settings = {**SHORT, "train.size": "16"}
    gate = offmap.fit(files[:40], recipe="vae", volumes=True, settings=settings, jobs=0)
    odd = [*sorted((folder / "volumes" / "other").iterdir())[:3], *files[40:43]]
    rows = gate.score(odd, jobs=0, use_cache=False).rows
    assert all(row["status"] == "ok" or row["reason"] for row in rows)
    assert [row["status"] for row in rows[-3:]] == ["ok"] * 3
