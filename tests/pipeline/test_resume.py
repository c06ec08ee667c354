"""A fit whose training is interrupted, killed, or stopped by a full disk goes on, and its gate is that of one sitting."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer.testing
from tests.pipeline.conftest import write

import offmap
from offmap.cli import app
from offmap.core.errors import ConfigError
from offmap.pipeline.gate import Gate
from offmap.pipeline.resumable import TRAINED, Checkpoints, beside, clear
from offmap.represent.train import checkpoint, log

pytest.importorskip("monai", reason="needs the extra [generative]")

CPU = torch.device("cpu")

SMALL = {"train.size": "16", "train.widths": "[8, 8]", "train.latent": "4", "train.batch": "8", "train.steps": "200"}
SMALL |= {"train.check_every": "10", "train.warmup": "5", "train.patience": "100"}
SHORT = {**SMALL, "train.steps": "8", "train.check_every": "2"}


def command(train: Path, out: Path, settings: Mapping[str, str], *more: str, recipe: str = "vae") -> list[str]:
    chosen = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return ["fit", str(train), "--recipe", recipe, "--out", str(out), "--jobs", "1", *chosen, *more]


def run(arguments: list[str]) -> typer.testing.Result:
    return typer.testing.CliRunner().invoke(app, arguments)


def facts(gate: Gate) -> dict[str, Any]:
    return {key: value for key, value in gate.card["training"].items() if key != "seconds"}


def require_same(gate: Gate, other: Gate, images: Path) -> None:
    assert facts(gate) == facts(other)
    scores = [np.array([row["score"] for row in one.score(images, jobs=0, use_cache=False).rows]) for one in (gate, other)]
    assert np.array_equal(*scores)


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_an_interrupted_and_a_killed_fit_go_on(tmp_path: Path) -> None:
    discs, out = write(tmp_path / "discs", 60), tmp_path / "gate"
    place = tmp_path / "gate.training"
    for number, (sign, more) in enumerate([(signal.SIGINT, []), (signal.SIGKILL, ["--resume"])]):
        whole = [sys.executable, "-m", "offmap", *command(discs, out, SMALL, "--json", *more)]
        running = subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_heed_interrupts)
        assert running.stdout is not None
        for line in running.stdout:
            if (event := json.loads(line))["event"] == "train" and event["done"] >= 30 * (number + 1):
                break
        running.send_signal(sign)
        _, error = running.communicate(timeout=60)
        assert running.returncode == (130 if sign == signal.SIGINT else -sign), error
        assert (f"kept in {place}: the same command with --resume goes on with it" in error) == (sign == signal.SIGINT)
        assert not out.exists()
        steps = [json.loads(text)["step"] for text in (place / "log.jsonl").read_text().splitlines() if text.endswith("}")]
        assert steps == list(range(1, len(steps) + 1))
        assert 30 * (number + 1) <= len(steps) < 200
    done = subprocess.run([sys.executable, "-m", "offmap", *command(discs, out, SMALL, "--resume")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not place.exists()
    require_same(offmap.load(out), offmap.fit(discs, recipe="vae", settings=SMALL, jobs=0), discs)


def test_a_full_disk_leaves_the_checkpoint_before_from_which_the_fit_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    discs, out = write(tmp_path / "discs", 60), tmp_path / "gate"
    place, own, count = beside(out), Path.write_bytes, 0

    def filling(self: Path, data: bytes) -> int:
        nonlocal count
        if self.parent == place:
            count += 1
            if count == 3:
                own(self, data[:100])
                raise OSError(errno.ENOSPC, "No space left on device")
        return own(self, data)

    monkeypatch.setattr(Path, "write_bytes", filling)
    told = run(command(discs, out, SHORT))
    monkeypatch.undo()
    monkeypatch.setenv("OFFMAP_CACHE", str(tmp_path / "cache"))
    assert told.exit_code == 2
    assert "the checkpoint of 0 MB cannot be written" in told.stderr
    assert "No space left on device. The checkpoint before is whole: make room and go on from it with resume" in told.stderr
    assert not out.exists()
    assert sorted(path.name for path in place.iterdir()) == [checkpoint.FILE, log.FILE, TRAINED]
    told = run(command(discs, out, SHORT, "--resume", "--json"))
    assert told.exit_code == 0, told.stderr
    assert [event["done"] for event in map(json.loads, told.stdout.splitlines()) if event["event"] == "train"] == [0, 2, 4, 6, 8]
    assert not place.exists()
    require_same(offmap.load(out), offmap.fit(discs, recipe="vae", settings=SHORT, jobs=0), discs)


class StopError(Exception):
    pass


def until(step: int) -> Any:
    def tell(event: Mapping[str, Any]) -> None:
        if event["event"] == "train" and event["done"] == step:
            raise StopError

    return tell


def test_without_resume_a_training_starts_over_and_another_one_is_refused(tmp_path: Path) -> None:
    discs, place = write(tmp_path / "discs", 60), tmp_path / "place"
    told: list[Mapping[str, Any]] = []
    with pytest.raises(StopError):
        offmap.fit(discs, recipe="vae", settings=SHORT, jobs=0, training=place, progress=until(4))
    others = [("seed", {"seed": 1}), (r"plan \(rate\)", {"settings": {**SHORT, "train.rate": "0.01"}})]
    for what, changed in [*others, ("images", {"train": write(tmp_path / "others", 60, first=60)})]:
        with pytest.raises(ConfigError, match=rf"was made with another .*{what}.*: use the same, or start over, without resume"):
            offmap.fit(**{"train": discs, "recipe": "vae", "settings": SHORT, "jobs": 0, "training": place, "resume": True, **changed})
    again = offmap.fit(discs, recipe="vae", settings=SHORT, jobs=0, training=place, progress=told.append, seed=1)
    assert [event["done"] for event in told if event["event"] == "train"] == [0, 2, 4, 6, 8]
    assert again.card["training"]["seconds"] >= round(checkpoint.spent(place), 1) > 0
    (warning,) = [event["message"] for event in told if event["event"] == "warning"]
    assert "is started over; with --resume" in warning
    over = offmap.fit(discs, recipe="vae", settings=SHORT, jobs=0, training=place, resume=True, seed=1)
    require_same(again, over, discs)
    assert over.card["training"]["seconds"] >= round(checkpoint.spent(place), 1)


def test_what_is_no_checkpoint_is_left_alone(tmp_path: Path) -> None:
    nothing, out = tmp_path / "nothing", tmp_path / "brain"
    images = write(tmp_path / "brain.training", 3)
    told = run(command(nothing, out, SHORT))
    assert told.exit_code == 2
    assert "holds '000.png': move it, or name the gate otherwise" in told.stderr
    assert len(list(images.iterdir())) == 3
    (images / "first").mkdir()
    (images / "first" / checkpoint.FILE).write_bytes(b"")
    clear(images)
    assert sorted(path.name for path in images.iterdir()) == ["000.png", "001.png", "002.png"]
    other = tmp_path / "other"
    (other / "second").mkdir(parents=True)
    for name in (checkpoint.FILE, f"{log.FILE}.part", ".DS_Store"):
        (other / "second" / name).write_bytes(b"")
    (tmp_path / "gate.training").symlink_to(other)
    Checkpoints.of(beside(tmp_path / "gate"), ["vae"], resume=False).opened(CPU)
    assert [path.name for path in other.iterdir()] == [TRAINED]
    clear(other)
    assert not other.exists()
    (tmp_path / "file.training").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        Checkpoints.of(beside(tmp_path / "file"), ["vae"], resume=False)


def test_there_must_be_a_training_to_resume(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    told = run(["fit", str(nothing), "--out", str(tmp_path / "gate"), "--resume"])
    assert told.exit_code == 2
    assert "no training to resume: recipe 'standard' trains no network" in told.stderr
    with pytest.raises(ConfigError, match="no folder is given"):
        offmap.fit(nothing, recipe="vae", resume=True)


def test_two_trainings_have_a_folder_each(tmp_path: Path) -> None:
    assert beside(Path("gate/")) == Path("gate.training")
    assert Checkpoints.of(tmp_path, ["vae"], resume=True).opened(CPU) == [tmp_path]
    assert Checkpoints.of(tmp_path, ["vae", "gan"], resume=True).opened(CPU) == [tmp_path / "first", tmp_path / "second"]


def test_a_training_of_other_networks_is_refused_before_images_are_read_and_kept(tmp_path: Path) -> None:
    place = tmp_path / "gate.training"
    Checkpoints.of(place, ["vae"], resume=False).opened(CPU)
    Checkpoints.of(place, ["gan"], resume=True)  # nothing was begun
    (place / checkpoint.FILE).write_bytes(b"")
    for recipe in ("latent-diffusion", "gan"):
        told = run(command(tmp_path / "nothing", tmp_path / "gate", {}, "--resume", recipe=recipe))
        assert told.exit_code == 2
        assert f"gate.training holds a training of vae, not of {recipe.replace('-', '_')}: take the recipe of then" in told.stderr
    assert sorted(path.name for path in place.iterdir()) == [checkpoint.FILE, TRAINED]
    (place / TRAINED).write_text("[1")
    Checkpoints.of(place, ["gan"], resume=True)  # the checkpoint itself is looked at later
