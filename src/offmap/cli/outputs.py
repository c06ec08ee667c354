"""Places to write to, checked before the work starts instead of after it."""

import os
from pathlib import Path

from offmap.core.errors import ConfigError


def folder(path: Path) -> Path:
    """A folder that is there or can be made.

    Raises:
        ConfigError: a file is in the way, or the place cannot be written.
    """
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path} is a file, a folder is needed; choose another name")
    _writable(path)
    return path


def gate(path: Path) -> Path:
    """A folder that is there as a gate or empty, or can be made.

    Raises:
        ConfigError: it holds anything else, or the place cannot be written.
    """
    from offmap.core.bundle import require_replaceable

    require_replaceable(folder(path))
    return path


def apart(page: Path, *others: Path) -> Path:
    """The folder of a page, which lies in none of those that hold nothing else.

    Raises:
        ConfigError: it does, or the place cannot be written.
    """
    for other in others:
        if page.resolve().is_relative_to(other.resolve()):
            raise ConfigError(f"the page cannot be written to {page}: {other} may hold nothing else; choose another folder")
    return folder(page)


def _writable(path: Path) -> None:
    nearest = path.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"{path} cannot be written: {nearest} is not a folder that you may write to")
