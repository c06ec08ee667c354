"""What a format's reader hands out: parts of a file that are decoded only when asked for."""

import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from offmap.core.types import Image

_TALKATIVE = tuple(logging.getLogger(name) for name in ("pydicom", "pylibjpeg", "tifffile", "nibabel", "PIL"))
for _logger in _TALKATIVE:
    _logger.addHandler(logging.NullHandler())  # else Python's last resort prints what does not propagate


@dataclass(frozen=True, slots=True)
class Part:
    """One image of a file.

    Args:
        suffix: what follows the file's name in the score table: ``#3``, ``[17]``, or nothing.
        read: decodes the part; its ``item`` and ``digest`` are filled in by ``load``.
        name: the part's name for its digest, where the suffix does not tell.
    """

    suffix: str
    read: Callable[[], Image]
    name: str = ""

    def digest(self, file_digest: str) -> str:
        """SHA-256 of the file's digest and the part's name."""
        return part_digest(file_digest, self.name or self.suffix)


@dataclass(frozen=True, slots=True)
class Known:
    """An image that was not decoded because the caller knows its digest already.

    Args:
        item: name in the score table.
        digest: as ``Image.digest``.
    """

    item: str
    digest: str


def part_digest(file_digest: str, part: str = "") -> str:
    """Digest of one part of a file: SHA-256 over ``<SHA-256 of the bytes>:<part>``."""
    return hashlib.sha256(f"{file_digest}:{part}".encode()).hexdigest()


@contextmanager
def quiet() -> Iterator[None]:
    """Drop the warnings and log lines of the format libraries: they quote values, which may be patient data."""
    before = [logger.propagate for logger in _TALKATIVE]
    for logger in _TALKATIVE:
        logger.propagate = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, propagate in zip(_TALKATIVE, before, strict=True):
            logger.propagate = propagate
