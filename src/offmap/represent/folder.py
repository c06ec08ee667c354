"""A trained network in a folder: ``model.safetensors`` and ``config.json``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from offmap.core.errors import ConfigError, NotAvailableError


def read_folder(folder: Path, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and weights.

    Args:
        what: kind of network, for messages.

    Raises:
        NotAvailableError: a file is missing.
        ConfigError: they cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / "config.json").read_text())
        state = load_file(folder / "model.safetensors")
    except FileNotFoundError as error:
        raise NotAvailableError(f"{folder} must hold config.json and model.safetensors of a {what}") from error
    except (SafetensorError, ValueError) as error:
        raise ConfigError(f"{folder} holds no readable {what}: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{folder} holds no readable {what}: config.json is no table")
    return config, state


def write_folder(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor], what: str) -> None:
    """Write what ``read_folder`` reads.

    Raises:
        ConfigError: it cannot be written.
    """
    from safetensors.torch import save

    content = save({name: value.cpu().contiguous() for name, value in state.items()})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_bytes(content)
        (folder / "config.json").write_text(json.dumps(config, indent=1))
    except OSError as error:
        raise ConfigError(f"the {what} cannot be written to {folder}: {error.strerror}") from error
