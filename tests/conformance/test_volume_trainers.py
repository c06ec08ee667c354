"""Every trainer found, without a list: it trains a network of volumes, which opens again and sees them, or says why not."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from tests.conformance.trainers import TRAINERS, tiny

from offmap.core.errors import ConfigError
from offmap.core.trainer import Examples

CPU = torch.device("cpu")

SMALL = {"size": 8, "steps": 2, "check_every": 1, "batch": 2, "code_steps": 2, "student_steps": 2}


@pytest.mark.parametrize("name", TRAINERS)
def test_it_trains_on_volumes_or_says_why_not(name: str, tmp_path: Path) -> None:
    pytest.importorskip("monai", reason="needs the extra [generative]")
    pytest.importorskip("einops", reason="needs the extra [generative]")
    torch.set_num_threads(1)
    if "axes" not in {f.name for f in fields(TRAINERS[name])}:
        with pytest.raises(ConfigError, match=f"--volumes does not go with train:{name}"):
            TRAINERS[name]().over_volumes()
        return
    trainer = tiny(name, **SMALL).over_volumes()
    assert trainer.input.sides == (8, 8, 8)
    images = torch.rand(18, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(18) % 2 if trainer.labelled else None
    found = trainer.train(Examples(images, labels, torch.arange(4)), seed=0, device=CPU, folder=tmp_path)
    again = trainer.train(Examples(images, labels, torch.arange(4)), seed=0, device=CPU, folder=tmp_path)
    assert all(torch.equal(value, again.state[key]) for key, value in found.state.items())
    encoder = trainer.open(2 if trainer.labelled else 0, found.state, device=CPU)
    assert encoder.input == trainer.input
    assert encoder.provides == trainer.open(2 if trainer.labelled else 0, None, device=CPU).provides
    asked = frozenset(signal for signal in encoder.provides if signal.endswith(".map") and not signal.startswith("lmd"))
    assert all(value.shape[0] == 2 and value.ndim == 5 for value in encoder.encode(images[:2], asked).values())
    with pytest.raises(ConfigError, match=r"axes = 4 must be 2"):
        replace(trainer, axes=4)  # type: ignore[call-arg]
