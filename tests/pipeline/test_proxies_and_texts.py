"""Gates whose methods fit on images mixed with proxies, or ask whether a text fits: fitted on phantoms, saved, loaded, scored."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.represent.text_models import saved
from torch import nn

import offmap
from offmap.core.errors import ConfigError, NotAvailableError
from offmap.pipeline import recipe as recipes
from offmap.represent.encoder import BuiltinEncoder
from offmap.represent.proxy import WithProxies
from offmap.simulate.phantoms import draw

STEPS = '[prepare.window]\n[prepare.crop]\n[prepare.resize]\nsize = "encoder"\n'
PROMPTS = '["a chest x-ray", "a brain slice", "skin"]'


@pytest.fixture(scope="module")
def brains() -> np.ndarray:
    return np.stack([draw("brain", i, seed=1, size=64) for i in range(30)])


@pytest.fixture(scope="module")
def others() -> np.ndarray:
    return np.stack([draw(("chest", "waves", "page")[i % 3], i, seed=1, size=64) for i in range(9)])


def recipe(folder: Path, text: str) -> str:
    file = folder / "recipe.toml"
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize("proxies", ["[]", '["noise", "chest"]'])
def test_mfs_is_fitted_with_proxies_and_scores_without(tmp_path: Path, brains: np.ndarray, others: np.ndarray, proxies: str) -> None:
    plan = recipe(tmp_path, f"[encoder]\nproxies = {proxies}\n{STEPS}[score.mfs_knn]\nk = 2\n[score.mfs_mahalanobis_pp]\n")
    gate = offmap.fit(brains, axes="NHW", recipe=plan, settings={"prepare.resize.size": "64"}, jobs=0)
    assert not isinstance(gate.encoder, WithProxies)
    assert not any("proxy" in name for name in gate.scorer.needs)
    gate.save(tmp_path / "gate")
    again = offmap.load(tmp_path / "gate")
    assert again.id == gate.id
    usual, odd = again.score(brains, axes="NHW", jobs=0).rows, again.score(others, axes="NHW", jobs=0).rows
    assert odd == gate.score(others, axes="NHW", jobs=0).rows
    for part in ("score.mfs_knn", "score.mfs_mahalanobis_pp"):
        assert min(r[part] for r in odd) > np.median([r[part] for r in usual])


def test_mcm_reads_prompts_once_and_the_gate_keeps_them(tmp_path: Path, brains: np.ndarray, others: np.ndarray) -> None:
    folder = saved("clip", tmp_path / "clip")
    plan = recipe(tmp_path, f'[encoder]\nspec = "hub:{folder}"\ntext = {PROMPTS}\n{STEPS}[score.mcm]\n[score.mfs_knn]\nk = 2\n')
    gate = offmap.fit(brains, axes="NHW", recipe=plan, jobs=0)
    gate.save(tmp_path / "gate")
    for file in folder.iterdir():
        file.unlink()
    again = offmap.load(tmp_path / "gate")
    assert again.id == gate.id
    assert again.recipe.encoder.text == ("a chest x-ray", "a brain slice", "skin")
    rows = again.score(others, axes="NHW", jobs=0).rows
    assert rows == gate.score(others, axes="NHW", jobs=0).rows
    assert all(0 < r["score.mcm"] < 1 for r in rows)
    assert len({r["score.mcm"] for r in rows}) == len(rows)


def test_mcm_reads_text_features_from_a_file_with_the_cache(tmp_path: Path, discs: Path) -> None:
    signals = BuiltinEncoder.shipped().encode(torch.zeros(1, 1, 64, 64), frozenset({"features.last"}))
    drawn = torch.randn(3, signals["features.last"].shape[1], generator=torch.Generator().manual_seed(0))
    save_file({"embedding": drawn}, tmp_path / "t.safetensors")
    plan = recipe(tmp_path, f'[encoder]\ntext = "{tmp_path / "t.safetensors"}"\n{STEPS}[score.mcm]\n')
    first, second = (offmap.fit(discs, recipe=plan, jobs=0) for _ in range(2))
    first.save(tmp_path / "gate")
    rows = offmap.load(tmp_path / "gate").score(discs, jobs=0).rows
    assert rows == first.score(discs, jobs=0).rows == second.score(discs, jobs=0).rows


def test_what_is_missing_is_said_before_any_file_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mcm needs image_embedding, text\.embedding; .* \[encoder\] text = "):
        offmap.fit(tmp_path / "nowhere", recipe=recipe(tmp_path, f"{STEPS}[score.mcm]\n"))
    with pytest.raises(NotAvailableError, match="no such file"):
        offmap.fit(tmp_path / "nowhere", recipe=recipe(tmp_path, f'[encoder]\ntext = "texts.npz"\n{STEPS}[score.mcm]\n'))
    with pytest.raises(ConfigError, match="text = 3 has the wrong type"):
        offmap.fit(tmp_path / "nowhere", recipe=recipe(tmp_path, f"[encoder]\ntext = 3\n{STEPS}[score.mcm]\n"))
    with pytest.raises(ConfigError, match="'brian' is neither"):
        offmap.fit(tmp_path / "nowhere", recipe=recipe(tmp_path, f'[encoder]\nproxies = ["brian"]\n{STEPS}[score.mfs_knn]\n'))


def test_a_classifier_takes_both_and_is_given_again(tmp_path: Path, brains: np.ndarray, others: np.ndarray) -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    module = nn.Sequential(body, nn.Linear(16, 3)).eval()
    np.savez(tmp_path / "texts.npz", np.eye(16)[:4])
    plan = recipe(
        tmp_path, f'[encoder]\ntext = "{tmp_path / "texts.npz"}"\n{STEPS}[score.mcm]\n[score.mfs_mahalanobis]\nlayer = "penultimate"\n'
    )
    gate = offmap.fit(brains, axes="NHW", recipe=plan, encoder=module, jobs=0)
    gate.save(tmp_path / "gate")
    again = offmap.load(tmp_path / "gate", encoder=module)
    assert again.id == gate.id
    assert again.score(others, axes="NHW", jobs=0).rows == gate.score(others, axes="NHW", jobs=0).rows


def test_volumes_are_mixed_too(tmp_path: Path) -> None:
    stacks = np.stack([np.stack([draw("brain", 5 * i + d, seed=1, size=64) for d in range(4)]) for i in range(12)])
    plan = recipe(tmp_path, f"{STEPS}[score.mfs_knn]\nk = 1\n")
    gate = offmap.fit(stacks, axes="NDHW", volumes=True, recipe=plan, settings={"prepare.resize.size": "48"}, jobs=0)
    assert [r["status"] for r in gate.score(stacks[:2], axes="NDHW", jobs=0).rows] == ["ok"] * 2


def test_texts_and_proxies_are_set_on_the_command_line_as_json(tmp_path: Path) -> None:
    settings = {"encoder.text": '["a brain", "a chest"]', "encoder.proxies": '["blur"]'}
    found = recipes.read(recipe(tmp_path, f"{STEPS}[score.mcm]\n"), settings).encoder
    assert (found.text, found.proxies) == (("a brain", "a chest"), ("blur",))
    assert recipes.read("standard", {"encoder.text": "texts.npz"}).encoder.text == "texts.npz"
    assert recipes.from_json(recipes.read("standard", settings).to_json()).encoder == replace(found, spec="builtin")
