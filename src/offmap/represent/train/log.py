"""One line of JSON for each step of a training; a training that goes on goes on with its log as well."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from offmap.represent.train.checkpoint import refused, to_disk

FILE = "log.jsonl"


def add(folder: Path, values: Mapping[str, Any], *, keep: bool) -> None:
    """Write one line.

    Args:
        keep: wait until the disk has it, before a checkpoint that relies on it.

    Raises:
        ConfigError: the disk is full, or the folder cannot be written to.
    """
    with refused(f"the log cannot be written to {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / FILE).open("a", encoding="utf-8") as log:
            log.write(json.dumps(dict(values)) + "\n")
        if keep:
            to_disk(folder / FILE)


def upto(folder: Path, step: int, *, cut: bool) -> list[dict[str, Any]]:
    """The lines of the first steps, as far as they are there.

    Args:
        cut: take the later ones, which no checkpoint holds, out of the file.

    Raises:
        ConfigError: the disk is full, or the folder cannot be written to.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    lines = path.read_bytes().splitlines()
    found = [values for values in map(_read, lines) if values is not None and values["step"] <= step]
    if cut and len(found) < len(lines):
        part = folder / f"{FILE}.part"
        with refused(f"the log cannot be written to {folder}"):
            part.write_text("".join(json.dumps(values) + "\n" for values in found), encoding="utf-8")
            os.replace(part, path)
    return found


def _read(line: bytes) -> dict[str, Any] | None:
    """Nothing of a line that was torn by a power cut."""
    try:
        values = json.loads(line)
    except ValueError:
        return None
    return values if isinstance(values, dict) and isinstance(values.get("step"), int) else None
