"""Gates on detectors that need further passes or gradients of the user's classifier."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.pipeline.conftest import picture
from torch import Tensor, nn

import offmap
from offmap.core.errors import ConfigError

PLAIN = "[prepare.window]\n[prepare.crop]\n[prepare.resize]\nsize = 32\n"
PARTS = {
    "energy": "",
    "vim": "",
    "odin": "",
    "mahalanobis_odin": "",
    "adascale_a": "p_max = 90",
    "adascale_l": "p_max = 90",
    "nac": "",
    "rankfeat": "",
    "mc_dropout_entropy": "samples = 5",
    "mc_dropout_mutual_information": "samples = 5",
    "test_time_augmentation": "",
}
PASSES = 1 + 1 + 1 + 2 + 5 + 7
"""Ordinary, ODIN, AdaSCALE, two tails, dropout, seven more views."""


class Counted(nn.Module):
    """Counts the images that it sees."""

    def __init__(self, *, dropout: float = 0.3) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.one = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.two = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(inplace=True), nn.Dropout2d(dropout))
        self.neck = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout))
        self.fc = nn.Linear(16, 3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.4, generator=rng)
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        out: Tensor = self.fc(self.neck(self.two(self.one(x))))
        return out


def write_recipe(folder: Path, parts: dict[str, str] = PARTS) -> str:
    file = folder / "passes.toml"
    file.write_text(PLAIN + "".join(f"[score.{name}]\n{fields}\n" for name, fields in parts.items()))
    return str(file)


def test_all_of_them_make_one_gate_that_survives_saving(discs: Path, tmp_path: Path) -> None:
    module = Counted().train()
    gate = offmap.fit(discs, recipe=write_recipe(tmp_path), encoder=module, jobs=0)
    gate.save(tmp_path / "gate")
    module.seen = 0
    rows = gate.score(discs, jobs=0, use_cache=False).rows
    assert module.seen == 60 * PASSES
    assert {f"score.{name}" for name in PARTS} <= set(rows[0])
    assert all(r["status"] == "ok" and all(np.isfinite(r[f"score.{name}"]) for name in PARTS) for r in rows)
    again = offmap.load(tmp_path / "gate", encoder=module)
    assert again.score(discs, jobs=0, use_cache=False).rows == rows
    assert module.training
    assert all(p.grad is None for p in module.parameters())


def test_one_image_scores_as_in_its_folder_and_as_an_array(discs: Path, tmp_path: Path) -> None:
    gate = offmap.fit(discs, recipe=write_recipe(tmp_path), encoder=Counted(), jobs=0)
    rows = gate.score(discs, jobs=0, use_cache=False).rows
    (alone,) = gate.score(discs / "007.png", jobs=0, use_cache=False).rows
    (given,) = gate.score(picture(7)[None], axes="NHW").rows
    for name in PARTS:
        expected = pytest.approx(rows[7][f"score.{name}"], rel=1e-4, abs=1e-6)
        assert alone[f"score.{name}"] == expected
        assert given[f"score.{name}"] == expected


def test_the_cache_answers_for_all_signals(discs: Path, tmp_path: Path) -> None:
    module, recipe = Counted(), write_recipe(tmp_path)
    gate = offmap.fit(discs, recipe=recipe, encoder=module, jobs=0)
    some = gate.score(sorted(discs.iterdir())[5:15], jobs=0).rows
    fresh = gate.score(discs, jobs=0).rows
    for name in PARTS:
        assert [r[f"score.{name}"] for r in fresh[5:15]] == pytest.approx([r[f"score.{name}"] for r in some], rel=1e-4, abs=1e-6)
    module.seen = 0
    assert gate.score(discs, jobs=0).rows == fresh
    assert module.seen == 0
    again = offmap.fit(discs, recipe=recipe, encoder=module, jobs=0)
    assert 0 < module.seen < 60
    assert again.score(discs, jobs=0).rows == fresh


def test_other_settings_do_not_meet_in_the_cache(discs: Path, tmp_path: Path) -> None:
    module = Counted()
    parts = {"odin": "epsilon = 0.0\ntemperature = 1.0"}
    still = offmap.fit(discs, recipe=write_recipe(tmp_path, parts), encoder=module, jobs=0).score(discs, jobs=0).rows
    parts = {"odin": "epsilon = 0.05\ntemperature = 1.0"}
    moved = offmap.fit(discs, recipe=write_recipe(tmp_path, parts), encoder=module, jobs=0).score(discs, jobs=0).rows
    plain = offmap.fit(discs, recipe=write_recipe(tmp_path, {"msp": ""}), encoder=module, jobs=0).score(discs, jobs=0).rows
    assert [r["score.odin"] for r in still] == pytest.approx([r["score.msp"] for r in plain], rel=1e-4)
    assert all(m["score.odin"] < s["score.odin"] for m, s in zip(moved, still, strict=True))


@pytest.mark.parametrize("name", ["mc_dropout_entropy", "mc_dropout_mutual_information"])
def test_a_network_without_dropout_is_refused_before_any_file_is_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[score.{name}\] .*has no dropout part.*test_time_augmentation"):
        offmap.fit(tmp_path / "nothing", recipe=write_recipe(tmp_path, {name: ""}), encoder=Counted(dropout=0.0), jobs=0)


@pytest.mark.parametrize("name", [n for n in PARTS if n not in ("energy", "vim")])
def test_an_encoder_without_a_head_is_refused_with_the_way_out(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[score.{name}\] {name} needs .*need a head: give your classifier"):
        offmap.fit(tmp_path / "nothing", recipe=write_recipe(tmp_path, {name: PARTS[name]}), jobs=0)


def test_volumes_do_not_give_these_signals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"odin needs odin\.logits"):
        offmap.fit(tmp_path / "nothing", recipe=write_recipe(tmp_path, {"odin": ""}), encoder=Counted(), volumes=True, jobs=0)


def test_a_network_without_gradients_is_refused_before_any_file_is_read(tmp_path: Path) -> None:
    class Sealed(Counted):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    with pytest.raises(ConfigError, match=r"gives no gradients .*give the Python module itself"):
        offmap.fit(tmp_path / "nothing", recipe=write_recipe(tmp_path, {"odin": ""}), encoder=Sealed(), jobs=0)


def test_one_class_is_refused_by_those_that_need_two(tmp_path: Path) -> None:
    module = Counted()
    module.fc = nn.Linear(16, 1)
    with pytest.raises(ConfigError, match="odin needs two logits or more"):
        offmap.fit(tmp_path / "nothing", recipe=write_recipe(tmp_path, {"odin": ""}), encoder=module, jobs=0)
