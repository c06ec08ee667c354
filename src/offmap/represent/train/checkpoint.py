"""One file from which a run of training can go on exactly: tensors and numbers, and whose run it is."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offmap.core.errors import ConfigError

FILE = "checkpoint.safetensors"


def write(folder: Path, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Write the checkpoint; the one before stays until this one is whole.

    Args:
        tensors: all that change, by name.
        numbers: JSON values that change.
        identity: what must be the same to go on: plan, seed, data.

    Raises:
        ConfigError: the disk is full, or the folder cannot be written to.
    """
    from safetensors.torch import save

    content = save(
        {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}, {"run": json.dumps({**numbers, "identity": identity})}
    )
    part = folder / f"{FILE}.part"
    try:
        with refused(f"the checkpoint of {len(content) / 1e6:.0f} MB cannot be written to {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            part.write_bytes(content)
            to_disk(part)
            os.replace(part, folder / FILE)
    finally:
        part.unlink(missing_ok=True)
    with suppress(OSError):
        to_disk(folder)


@contextmanager
def refused(what: str) -> Iterator[None]:
    """What the system refuses to write, as an error that says how to go on.

    Raises:
        ConfigError: with ``what`` and the system's words.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{what}: {error.strerror}. The checkpoint before is whole: make room and go on from it with resume") from error


def to_disk(path: Path) -> None:
    """Wait until the disk has a file or a folder, so that a power cut does not take it away again."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(folder: Path, identity: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and numbers of a checkpoint.

    Raises:
        ConfigError: it belongs to another run, or is damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / FILE
    try:
        with safe_open(path, "pt") as file:
            numbers = json.loads((file.metadata() or {})["run"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        known = numbers.pop("identity")
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ConfigError(f"{path} is no readable checkpoint: delete it and start again ({type(error).__name__})") from error
    wanted = json.loads(json.dumps(identity))
    other = [_named(k, known.get(k), wanted[k]) for k in wanted if known.get(k) != wanted[k]]
    if other:
        raise ConfigError(f"{path} was made with another {', '.join(other)}: use the same, or start over, without resume")
    return tensors, numbers


def spent(folder: Path) -> float:
    """Seconds that the trainings whose checkpoints lie in a folder have taken so far; unreadable ones count nothing."""
    from safetensors import SafetensorError, safe_open

    total = 0.0
    for path in folder.rglob(FILE):
        with suppress(SafetensorError, OSError, KeyError, ValueError), safe_open(path, "pt") as file:
            total += float(json.loads((file.metadata() or {})["run"])["seconds"])
    return total


def _named(key: str, known: Any, wanted: Any) -> str:
    """What differs, and of a plan which settings."""
    if not isinstance(known, dict) or not isinstance(wanted, dict):
        return key
    return f"{key} ({', '.join(sorted(k for k in known | wanted if known.get(k, ...) != wanted.get(k, ...)))})"


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors ``prefix.<name>`` by their name."""
    return {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}


def moments_of(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimiser remembers of each parameter, as ``<index>.<name>``."""
    states = optimiser.state_dict()["state"].items()
    return {f"{index}.{name}": value for index, moments in states for name, value in moments.items()}


def take_moments(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of ``moments_of``."""
    found: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        found.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": found, "param_groups": optimiser.state_dict()["param_groups"]})


def follow(average: torch.nn.Module, own: torch.nn.Module, rate: float, step: int) -> None:
    """Move a running mean of weights towards them; early on faster, so that it forgets where it began.

    Args:
        average: is changed.
        rate: decay of the mean, reached late.
        step: finished steps.
    """
    keep = min(rate, (1 + step) / (10 + step))
    given = own.state_dict()
    with torch.no_grad():
        for name, value in average.state_dict().items():
            if value.is_floating_point():
                value.lerp_(given[name], 1 - keep)
            else:
                value.copy_(given[name])
