"""A classifier saved by `torch.export.save`. Such a file is a program: it runs only when the user says that it is trusted."""

import json
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export.passes import move_to_device_pass

from offmap.core.encoder import Input
from offmap.core.errors import ConfigError, NotAvailableError
from offmap.represent.digest import file_sha256
from offmap.represent.hub import input_from

NOTE = "offmap.json"
"""Extra file inside a program, what it wants to see: ``{"size", "channels", "mean", "std", "layers", "classes"}``, each optional."""


@dataclass(frozen=True, slots=True)
class Program:
    """An opened program.

    Args:
        module: unflattened, so that hooks fire on its parts.
        input: as its note says, for the rest as its placeholder's shape says, for the rest the classifier's defaults.
        layers: as its note says.
        class_names: ``classes`` of its note, in the order of the logits.
        sha256: digest of the file.
    """

    module: nn.Module
    input: Input
    layers: tuple[str, ...]
    class_names: tuple[str, ...]
    sha256: str


def open_program(path: Path, *, trust: bool, device: torch.device | str = "cpu") -> Program:
    """Open a `.pt2` file.

    Args:
        trust: the user knows that the file is a program and lets it run.
        device: where it runs; a program holds device names, so that it is moved when it is opened.

    Raises:
        ConfigError: not trusted, TorchScript, bare weights, a fixed batch size, or no program at all.
        NotAvailableError: there is no such file.
    """
    if not path.is_file():
        raise NotAvailableError(f"classifier:{path}: there is no such file")
    _refuse_others(path)
    if not trust:
        raise ConfigError(
            f"classifier:{path} is a program and can do anything that you can: if you know where it comes from, "
            "add --trust-classifier (Python: trust_classifier=True); its SHA-256 goes into the gate"
        )
    digest = file_sha256(path)
    note = {NOTE: ""}
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            exported = torch.export.load(path, extra_files=note)
            if torch.device(device).type != "cpu":
                exported = move_to_device_pass(exported, str(device))
            module = torch.export.unflatten(exported)
    except Exception as error:
        raise ConfigError(
            f"classifier:{path} was not opened by torch {torch.__version__}: {type(error).__name__}: {str(error)[:300]}"
        ) from error
    shape = _shape(exported, path)
    if not isinstance(shape[0], torch.SymInt):
        raise ConfigError(
            f"classifier:{path} was exported for batches of exactly {shape[0]}: export it with a dynamic batch, "
            "torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim('batch')},)) with x of two images"
        )
    spec, layers, names = _read_note(note[NOTE], shape, path)
    return Program(module, spec, layers, names, digest)


def _refuse_others(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {n.partition("/")[2] or n for n in archive.namelist()}
    except zipfile.BadZipFile as error:
        raise ConfigError(f"classifier:{path} is no torch.export program (a zip archive made by torch.export.save)") from error
    if "constants.pkl" in names:
        raise ConfigError(f"classifier:{path} is TorchScript, whose modules take no hooks: save the model with torch.export.save instead")
    if "data.pkl" in names:
        raise ConfigError(
            f"classifier:{path} holds weights or a pickled module without the network: save the model with torch.export.save, "
            "or pass the module itself from Python"
        )


def _shape(exported: Any, path: Path) -> tuple[Any, ...]:
    """Shape of the one input; dynamic axes are symbols."""
    inputs = [n for n in exported.graph.nodes if n.op == "placeholder" and n.name in exported.graph_signature.user_inputs]
    if len(inputs) != 1 or getattr(inputs[0].meta.get("val"), "ndim", 0) != 4:
        raise ConfigError(f"classifier:{path} takes {len(inputs)} inputs; one tensor (N, C, H, W) expected")
    return tuple(inputs[0].meta["val"].shape)


def _read_note(text: str, shape: tuple[Any, ...], path: Path) -> tuple[Input, tuple[str, ...], tuple[str, ...]]:
    channels, size = shape[1], shape[2] if isinstance(shape[2], int) else 224
    if channels not in (1, 3):
        raise ConfigError(f"classifier:{path} takes {channels} channels; offmap gives 1 or 3")
    mean, std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) if channels == 3 else ((0.5,), (0.5,))
    try:
        note = json.loads(text) if text else {}
        values = {"size": size, "channels": channels, "mean": mean, "std": std} | {
            k: v for k, v in note.items() if k not in ("layers", "classes")
        }
        return input_from(values), tuple(map(str, note.get("layers", ()))), tuple(map(str, note.get("classes", ())))
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"classifier:{path}: its note {NOTE} is no JSON object: {error}") from error
