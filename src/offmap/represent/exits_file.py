"""Exits in a file of their own, to be named in a recipe."""

import json
import os
from pathlib import Path

from offmap.core.encoder import Encoder
from offmap.core.errors import ConfigError, NotAvailableError
from offmap.represent.multi_exit import Exits, WithExits

ENDING = ".safetensors"


def check_ending(path: Path) -> None:
    """Raises:
    ConfigError: the file would not be a ``.safetensors`` file.
    """
    if path.suffix != ENDING:
        raise ConfigError(f"exits are kept in a {ENDING} file; {path} ends in {path.suffix or 'nothing'}")


def save_exits(encoder: WithExits, path: Path) -> None:
    """Write the exits, with the digest of the network that they belong to; the file appears whole or not at all.

    Raises:
        ConfigError: another ending than ``.safetensors``, or the file cannot be written.
    """
    from safetensors.torch import save

    check_ending(path)
    note = {"layers": json.dumps(encoder.exits.layers), "network": encoder.base.sha256}
    tensors = {name: value.detach().cpu().contiguous() for name, value in encoder.exits.tensors().items()}
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(save(tensors, metadata=note))
        os.replace(part, path)
    except OSError as error:
        raise ConfigError(f"exits cannot be written to {path}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def with_exits(base: Encoder, file: str) -> Encoder:
    """The encoder with the exits of a file, or itself where no file is named.

    Raises:
        NotAvailableError: no such file.
        ConfigError: a file that holds no exits, or those of another network.
    """
    if not file:
        return base
    exits, network = _read(Path(file))
    if network != base.sha256:
        raise ConfigError(
            f"the exits of {file} were trained on a network with SHA-256 {network}, {base.name} has {base.sha256}: train them on this one"
        )
    return WithExits(base, exits)


def _read(path: Path) -> tuple[Exits, str]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise NotAvailableError(f"exits = {str(path)!r}: there is no such file; `offmap add-exits` makes one")
    try:
        with safe_open(path, framework="pt") as file:
            note = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Exits.from_tensors(json.loads(note["layers"]), tensors), note["network"]
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} holds no exits: {type(error).__name__} {error}. `offmap add-exits` makes such a file") from error
