"""Gates that must not be used: refused by every command with code 4, before an image is read or anything in them is run."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from tests.core.test_bundle import replace, reseal
from typer.testing import CliRunner

from offmap.cli import app
from offmap.pipeline.gate import Gate
from offmap.read.workers import Workers

TENSORS = "calibrate.safetensors"


class Program:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def _tampered(gate: Path) -> None:
    raw = bytearray((gate / TENSORS).read_bytes())
    raw[-1] ^= 1
    (gate / TENSORS).write_bytes(raw)


def _truncated(gate: Path) -> None:
    (gate / TENSORS).write_bytes((gate / TENSORS).read_bytes()[:-9])


def _incomplete(gate: Path) -> None:
    (gate / TENSORS).unlink()


def _newer(gate: Path) -> None:
    reseal(gate, lambda m: m.update(format=2, offmap="9.0.0"))


def _edited(gate: Path) -> None:
    path = gate / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"alpha": 0.05', b'"alpha": 0.5'))


def _not_finite(gate: Path) -> None:
    weights = load((gate / "encoder.safetensors").read_bytes())
    weights[next(iter(weights))].view(-1)[0] = torch.nan
    replace(gate, "encoder.safetensors", save(weights))


def _pickle(gate: Path) -> None:
    replace(gate, TENSORS, pickle.dumps(Program(str(gate / "ran"))))


def _torch_file(gate: Path) -> None:
    torch.save({"scores": Program(str(gate / "ran"))}, gate / TENSORS)
    replace(gate, TENSORS, (gate / TENSORS).read_bytes())


def _no_manifest(gate: Path) -> None:
    (gate / "manifest.json").unlink()


def _unknown_step(gate: Path) -> None:
    reseal(gate, lambda m: m["prepare"][0].update(method="os.system"))


def _another_count(gate: Path) -> None:
    reseal(gate, lambda m: m.update(folds=1))


def _other_shapes(gate: Path) -> None:
    stage = "score.standard.0"
    state = load((gate / f"{stage}.safetensors").read_bytes())
    name = next(n for n in state if n.endswith(".factor"))
    state[name] = state[name][:-1, :-1].contiguous()
    shape = ["float64", *state[name].shape]
    reseal(gate, lambda m: m["stages"][stage]["tensors"].update({name: shape}))
    replace(gate, f"{stage}.safetensors", save(state))


@pytest.fixture(scope="module")
def saved(gate: Gate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("gate") / "gate"
    gate.save(place)
    return place


@pytest.mark.parametrize(
    "harm",
    [
        _tampered,
        _truncated,
        _incomplete,
        _newer,
        _edited,
        _not_finite,
        _pickle,
        _torch_file,
        _no_manifest,
        _unknown_step,
        _another_count,
        _other_shapes,
    ],
)
def test_a_harmed_gate_is_refused_with_code_4(
    harm: Callable[[Path], None], saved: Path, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = shutil.copytree(saved, tmp_path / "gate")
    harm(bad)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("an image was read")

    monkeypatch.setattr(Workers, "run", fail)
    image, out = str(discs / "000.png"), tmp_path / "out"
    commands = [
        ["score", str(bad), image, "--out", str(out / "s.csv")],
        ["explain", str(bad), image, "--out", str(out / "why")],
        ["check", image, "--gate", str(bad)],
    ]
    if harm not in (_unknown_step, _another_count, _other_shapes):  # looking at a gate that is whole builds nothing from it
        commands.append(["inspect", str(bad)])
    for arguments in commands:
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 4, (arguments[0], done.output)
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""
    assert not (bad / "ran").exists()
    assert not out.exists()
