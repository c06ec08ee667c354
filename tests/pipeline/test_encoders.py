"""Gates on other encoders than the built-in one: the user's classifier, a model of transformers, volumes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.pipeline.conftest import picture, write
from torch import nn

import offmap
from offmap.core.errors import BundleError, ConfigError
from offmap.pipeline.saved import read_card

MOBILENET = Path(__file__).parents[2].parent / "shared" / "weights" / "mobilenet_v2_imagenet"


def classifier(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(body, nn.Linear(16, 3)).eval()


@pytest.fixture
def logits_recipe(tmp_path: Path) -> str:
    file = tmp_path / "logits.toml"
    plain = '[prepare.window]\n[prepare.crop]\n[prepare.resize]\nsize = "encoder"\n'
    file.write_text(plain + "[score.energy]\n[score.vim]\n[score.knn]\nk = 3\n")
    return str(file)


def test_a_classifier_guards_itself(discs: Path, tmp_path: Path, logits_recipe: str) -> None:
    module = classifier()
    gate = offmap.fit(discs, recipe=logits_recipe, encoder=module, jobs=0)
    gate.save(tmp_path / "gate")
    rows = gate.score(discs, jobs=0).rows
    assert {"score.energy", "score.vim", "score.knn"} <= set(rows[0])
    assert offmap.load(tmp_path / "gate", encoder=module).score(discs, jobs=0).rows == rows
    with pytest.raises(BundleError, match="give it again with --encoder"):
        offmap.load(tmp_path / "gate")
    assert read_card(tmp_path / "gate") == gate.card
    with pytest.raises(BundleError, match="SHA-256"):
        offmap.load(tmp_path / "gate", encoder=classifier(seed=1))


def test_a_program_file_needs_trust(discs: Path, tmp_path: Path, logits_recipe: str) -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(classifier(), (torch.zeros(2, 1, 64, 64),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "net.pt2")
    spec = f"classifier:{tmp_path / 'net.pt2'}"
    with pytest.raises(ConfigError, match="trust"):
        offmap.fit(discs, recipe=logits_recipe, encoder=spec, jobs=0)
    gate = offmap.fit(discs, recipe=logits_recipe, encoder=spec, trust_classifier=True, jobs=0)
    gate.save(tmp_path / "gate")
    with pytest.raises(ConfigError, match="trust"):
        offmap.load(tmp_path / "gate", encoder=spec)
    again = offmap.load(tmp_path / "gate", encoder=spec, trust_classifier=True)
    assert again.score(discs, jobs=0).rows == gate.score(discs, jobs=0).rows


@pytest.mark.skipif(not MOBILENET.is_dir(), reason="the folder shared/weights is not there")
def test_a_model_of_transformers_travels_inside_the_gate(tmp_path: Path) -> None:
    data = write(tmp_path / "few", 12)
    gate = offmap.fit(data, encoder=f"hub:{MOBILENET}", jobs=0)
    gate.save(tmp_path / "gate")
    again = offmap.load(tmp_path / "gate")
    expected = [r["score"] for r in gate.score(data, jobs=0).rows]
    assert [r["score"] for r in again.score(data, jobs=0, use_cache=False).rows] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["slices", "patches"])
def test_volumes_are_items(tmp_path: Path, kind: str) -> None:
    stack = np.stack([np.stack([picture(i * 7 + d, size=40) for d in range(5)]) for i in range(14)])
    settings = {"encoder.volumes": kind, "prepare.resize.size": "48", "prepare.detail.size": "40"}
    if kind == "patches":
        settings |= {"prepare.resize.depth": "32"}
    gate = offmap.fit(stack, axes="NDHW", volumes=True, settings=settings)
    gate.save(tmp_path / "gate")
    rows = offmap.load(tmp_path / "gate").score(stack[:3], axes="NDHW").rows
    assert [r["status"] for r in rows] == ["ok"] * 3
    explained = gate.explain(stack[0], axes="DHW")
    assert explained.map is not None
    assert explained.map.shape == (5, 40, 40)
