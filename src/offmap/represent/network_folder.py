"""A trained network as a folder of two files, ``config.json`` and ``model.safetensors``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from offmap.core.errors import ConfigError, NotAvailableError


def write_network(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor], what: str) -> None:
    """Write both files.

    Args:
        what: for messages, such as ``diffusion model``.

    Raises:
        ConfigError: they cannot be written.
    """
    from safetensors.torch import save

    content = save({name: value.detach().cpu().contiguous() for name, value in state.items()})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_bytes(content)
        (folder / "config.json").write_text(json.dumps(config, indent=1))
    except OSError as error:
        raise ConfigError(f"the {what} cannot be written to {folder}: {error.strerror}") from error


def read_network(folder: Path, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights.

    Raises:
        NotAvailableError: a file is missing.
        ConfigError: they cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config, state = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    except FileNotFoundError as error:
        raise NotAvailableError(f"{folder} must hold config.json and model.safetensors of a trained {what}") from error
    except (SafetensorError, ValueError) as error:
        raise ConfigError(f"{folder} holds no readable {what}: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{folder} holds no readable {what}: config.json must be a table")
    return config, state
