"""Gates on several networks at once, and on the head's own doubt."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.pipeline.conftest import write
from tests.pipeline.test_encoders import classifier
from tests.pipeline.test_passes import Counted, write_recipe
from torch import nn

import offmap
from offmap.core.errors import BundleError, ConfigError, SignalError
from offmap.pipeline.saved import read_card

PARTS = {"ensemble_entropy": "", "ensemble_mutual_information": "", "laplace_entropy": "", "laplace_mutual_information": "", "knn": "k = 3"}


def members(count: int = 3, *, spread: float = 0.2) -> list[nn.Module]:
    """Networks near one another."""
    made = []
    for i in range(count):
        rng, net = torch.Generator().manual_seed(i), Counted()
        with torch.no_grad():
            for parameter in net.fc.parameters():
                parameter.add_(spread * torch.randn(parameter.shape, generator=rng))
        made.append(net)
    return made


def test_a_gate_on_three_networks_survives_saving(discs: Path, tmp_path: Path) -> None:
    nets = members()
    gate = offmap.fit(discs, recipe=write_recipe(tmp_path, PARTS), encoder=nets, jobs=0)
    gate.save(tmp_path / "gate")
    for net in nets:
        net.seen = 0
    rows = gate.score(discs, jobs=0, use_cache=False).rows
    assert [net.seen for net in nets] == [60, 60, 60]
    assert all(r["status"] == "ok" and all(np.isfinite(r[f"score.{name}"]) for name in PARTS) for r in rows)
    assert offmap.load(tmp_path / "gate", encoder=nets).score(discs, jobs=0, use_cache=False).rows == rows
    assert read_card(tmp_path / "gate") == gate.card
    assert gate.card["encoder"]["name"] == "ensemble of 3: classifier"
    with pytest.raises(BundleError, match="give its 3 networks again"):
        offmap.load(tmp_path / "gate")
    with pytest.raises(BundleError, match=r"member 1 of the ensemble: .* SHA-256"):
        offmap.load(tmp_path / "gate", encoder=nets[::-1])


def test_one_network_is_told_to_bring_others_before_any_file_is_read(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, {"ensemble_entropy": ""})
    with pytest.raises(ConfigError, match=r"ensemble_entropy needs ensemble\.logits; .*encoder=\[one, two, three\]"):
        offmap.fit(tmp_path / "nothing", recipe=recipe, encoder=Counted(), jobs=0)
    other = Counted()
    other.fc = nn.Linear(16, 4)
    with pytest.raises(ConfigError, match=r"member 2 of the ensemble \(classifier\) has 4 classes, the first has 3"):
        offmap.fit(tmp_path / "nothing", recipe=recipe, encoder=[Counted(), other], jobs=0)


def test_program_files_are_members_too_and_need_trust(discs: Path, tmp_path: Path) -> None:
    specs = []
    for i in range(2):
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(classifier(i), (torch.zeros(2, 1, 224, 224),), dynamic_shapes=({0: batch},))
        torch.export.save(program, tmp_path / f"{i}.pt2")
        specs.append(f"classifier:{tmp_path / f'{i}.pt2'}")
    recipe = str(tmp_path / "whole.toml")
    Path(recipe).write_text('[prepare.window]\n[prepare.crop]\n[prepare.resize]\nsize = "encoder"\n[score.ensemble_entropy]\n')
    with pytest.raises(ConfigError, match="trust"):
        offmap.fit(discs, recipe=recipe, encoder=specs, jobs=0)
    gate = offmap.fit(discs, recipe=recipe, encoder=specs, trust_classifier=True, jobs=0)
    assert len({m["sha256"] for m in gate.encoder.config()["members"]}) == 2


def test_classes_in_another_order_are_noticed_while_fitting(tmp_path: Path) -> None:
    class Coarse(nn.Module):
        """Discs and stripes as two classes, told by how fast the pixels change, in the order given."""

        def __init__(self, *, sign: float) -> None:
            super().__init__()
            self.fc = nn.Linear(1, 2)
            with torch.no_grad():
                self.fc.weight.copy_(sign * torch.tensor([[-1.0], [1.0]]))
                self.fc.bias.zero_()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            change = x.diff(dim=3).abs().mean(dim=(1, 2, 3)) / x.std(dim=(1, 2, 3))
            out: torch.Tensor = self.fc(10 * (change - 0.5)[:, None])
            return out

    write(tmp_path / "both" / "discs", 60)
    write(tmp_path / "both" / "stripes", 60, stripes=True)
    recipe = write_recipe(tmp_path, {"ensemble_entropy": ""})
    offmap.fit(tmp_path / "both", recipe=recipe, encoder=[Coarse(sign=1.0), Coarse(sign=1.5)], jobs=0)
    with pytest.raises(SignalError, match=r"member 2 of the ensemble says other classes .*: 1 for 0, 0 for 1 .*in the same order"):
        offmap.fit(tmp_path / "both", recipe=recipe, encoder=[Coarse(sign=1.0), Coarse(sign=-1.5)], jobs=0)
