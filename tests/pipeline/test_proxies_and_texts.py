"""Gates whose methods fit on images mixed with proxies, or ask whether a text fits: fitted on phantoms, saved, loaded, scored."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.represent.text_models import saved

import offmap
from offmap.core.errors import ConfigError, NotAvailableError
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
