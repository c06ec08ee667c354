"""The recipes gan and generative: gates that train their models, keep them, and flag what the models never saw."""

import re
from pathlib import Path

import numpy as np
import pytest
from tests.pipeline.conftest import write

import offmap
from offmap.core.errors import DataError

SMALL = {"train.size": "16", "train.widths": "[8, 8]", "train.latent": "4", "train.batch": "8", "train.check_every": "20"}
GAN = {**SMALL, "train.steps": "40", "train.adversarial_rate": "0.002"}
VAE = {**SMALL, "train.steps": "20", "train.rate": "0.003", "train.warmup": "5"}


def test_a_gan_is_kept_and_draws_maps(tmp_path: Path) -> None:
    discs = write(tmp_path / "discs", 80)
    gate = offmap.fit(discs, recipe="gan", settings=GAN, jobs=0, report=tmp_path / "page")
    gate.save(tmp_path / "gate")
    assert (tmp_path / "page" / "index.html").read_text().count("<img") == 2
    kept = b"".join(path.read_bytes() for path in (tmp_path / "gate").rglob("*") if path.is_file())
    assert len(set(re.findall(rb"data:image/png;base64,[^\"]+", kept))) == 1
    again = offmap.load(tmp_path / "gate")
    stripes = write(tmp_path / "stripes", 5, stripes=True)
    rows = gate.score(stripes, jobs=0, use_cache=False).rows
    assert again.score(stripes, jobs=0, use_cache=False).rows == rows
    usual = gate.score(discs, jobs=0, use_cache=False).rows
    assert min(row["score"] for row in rows) > np.median([row["score"] for row in usual])
    found = again.explain(stripes / "000.png")
    assert found.map is not None
    assert found.map.shape == (72, 72)
    assert gate.card["training"]["trainer"] == "gan"


def test_a_generative_gate_shows_what_each_part_contributes(tmp_path: Path) -> None:
    pytest.importorskip("monai", reason="needs the extra [generative]")
    discs = write(tmp_path / "discs", 80)
    gate = offmap.fit(discs, recipe="generative", settings=VAE, jobs=0)
    gate.save(tmp_path / "gate")
    stripes = write(tmp_path / "stripes", 5, stripes=True)
    rows = offmap.load(tmp_path / "gate").score(stripes, jobs=0, use_cache=False).rows
    assert rows == gate.score(stripes, jobs=0, use_cache=False).rows
    usual = gate.score(discs, jobs=0, use_cache=False).rows
    assert min(row["score"] for row in rows) > np.median([row["score"] for row in usual])
    parts = [name for name in rows[0] if name.startswith("score.generative_fusion.")]
    assert [name.rpartition(".")[2] for name in parts] == ["reconstruction", "dose", "complexity", "gradient_norm"]
    assert all(row[name] >= 0 for row in rows for name in parts)


@pytest.mark.parametrize(("recipe", "settings"), [("gan", GAN), ("generative", VAE)])
def test_five_images_are_refused(tmp_path: Path, recipe: str, settings: dict[str, str]) -> None:
    if recipe == "generative":
        pytest.importorskip("monai", reason="needs the extra [generative]")
    with pytest.raises(DataError):
        offmap.fit(write(tmp_path / "few", 5), recipe=recipe, settings=settings, jobs=0)
