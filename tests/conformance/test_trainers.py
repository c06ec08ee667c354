"""Every trainer found, without a list: a training that was interrupted again and again gives what one sitting gives."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conformance.trainers import TRAINERS, tiny

from offmap.core.errors import ConfigError
from offmap.core.trainer import Examples, Trained, Trainer
from offmap.represent.train import checkpoint

CPU = torch.device("cpu")


def examples() -> Examples:
    """Discs of two brightnesses; the first six choose the checkpoint."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32] / 32 - 0.5
    shift = 0.05 * rng.standard_normal((24, 2, 1, 1))
    labels = np.arange(24) % 2
    shown = (0.5 + 0.3 * labels[:, None, None]) * (np.hypot(y - shift[:, 0], x - shift[:, 1]) < 0.3)
    images = np.clip(shown + 0.1 + 0.03 * rng.standard_normal(shown.shape), 0, 1)
    return Examples(torch.from_numpy(images[:, None]).float(), torch.from_numpy(labels), torch.arange(6))


def trained(trainer: Trainer, folder: Path | None, *, seed: int = 0) -> Trained:
    given = examples() if trainer.labelled else replace(examples(), labels=None)
    return trainer.train(given, seed=seed, device=CPU, folder=folder)


def logs(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("log.jsonl")}


@pytest.fixture(autouse=True)
def _with_monai() -> None:
    pytest.importorskip("monai", reason="needs the extra [generative]")
    pytest.importorskip("einops", reason="needs the extra [generative]")
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", TRAINERS)
def test_interrupts_change_neither_losses_nor_weights(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sitting ends where its second checkpoint is due, so that some steps are lost, and some sittings end between two stages."""
    trainer, write = tiny(name), checkpoint.write
    whole = trained(trainer, tmp_path / "whole")
    count = 0

    def once(*args: Any) -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        write(*args)

    monkeypatch.setattr(checkpoint, "write", once)
    sittings, found = 0, None
    while found is None:
        sittings, count = sittings + 1, 0
        try:
            found = trained(trainer, tmp_path / "parts")
        except KeyboardInterrupt:
            assert sittings < 50
    monkeypatch.undo()
    assert sittings > 1
    assert found.state.keys() == whole.state.keys()
    assert all(torch.equal(value, whole.state[key]) for key, value in found.state.items())
    assert dict(found.facts) == dict(whole.facts)
    assert list(found.warnings) == list(whole.warnings)
    assert logs(tmp_path / "parts") == logs(tmp_path / "whole")
    again = trained(trainer, tmp_path / "parts")
    assert all(torch.equal(value, whole.state[key]) for key, value in again.state.items())
    assert dict(again.facts) == dict(whole.facts)
    with pytest.raises(ConfigError, match=r"was made with another .*seed"):
        trained(trainer, tmp_path / "parts", seed=1)


def test_trainers_are_found() -> None:
    assert {"diffusion", "latent_diffusion", "vae", "gan", "student", "multi_exit", "synthetic_anomaly", "rd4ad"} <= set(TRAINERS)
