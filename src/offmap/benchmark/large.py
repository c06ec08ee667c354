"""Methods that read maps or whole images: fitted from disk, scored while each set is read, so that no set is read twice."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.core.types import STATIC, Image, Signals

BATCH = 32
MOST_BYTES = 32 * 1024**3
"""Bound of the temporary files of one in-distribution set."""


class LargeSignals:
    """Maps and images of one in-distribution set in temporary files, which vanish when it is closed.

    Where they outgrow the bound, the signal that takes most is given up, so that the others stay.

    Args:
        needs: names or patterns of the signals to keep.
        folder: that the files lie in; it is made where it is not there.
        most: bytes that the files may take together.
    """

    def __init__(self, needs: frozenset[str], folder: Path, most: int = MOST_BYTES) -> None:
        self._needs, self._most = needs, most
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(prefix="maps-", dir=folder)
        self._files: dict[str, tuple[Path, tuple[int, ...]]] = {}
        self._at: list[int] = []
        self._written: dict[str, int] = {}
        self._given_up: dict[str, str] = {}

    def __enter__(self) -> "LargeSignals":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._folder.cleanup()

    def add(self, at: Int[np.ndarray, " n"], images: Sequence[Image], signals: Mapping[str, Tensor]) -> None:
        """Keep one batch."""
        self._at += at.tolist()
        for name, value in signals.items():
            if name in STATIC or name in self._given_up or not _asked(name, self._needs):
                continue
            data = np.ascontiguousarray(value.numpy(), dtype=np.float32)
            number = len(self._files) + len(self._given_up)
            path = self._files.setdefault(name, (Path(self._folder.name) / f"{number}.f32", data.shape[1:]))[0]
            with path.open("ab") as file:
                data.tofile(file)
            self._written[name] = self._written.get(name, 0) + data.nbytes
        while sum(self._written.values()) > self._most:
            self._give_up(max(self._written, key=lambda name: self._written[name]))

    def _give_up(self, name: str) -> None:
        self._files.pop(name)[0].unlink()
        size = f"{name} of {len(self._at)} images and more takes {self._written.pop(name) / 1e9:.1f} GB on disk, too much of the"
        self._given_up[name] = f"{size} {self._most / 1e9:.1f} GB for maps: lower max_id in the suite"

    def batches(self, items: Int[np.ndarray, " n"], needs: frozenset[str], device: torch.device) -> Iterable[Signals]:
        """Batches of some items, by position, with the named signals; those that were refused are left out.

        Raises:
            ConfigError: a signal was given up.
        """
        for name, reason in self._given_up.items():
            if _asked(name, needs):
                raise ConfigError(reason)
        place = {item: row for row, item in enumerate(self._at)}
        rows = np.array([place[i] for i in items.tolist() if i in place], dtype=np.int64)
        return _Stored({name: where for name, where in self._files.items() if _asked(name, needs)}, rows, device)


def _asked(name: str, needs: frozenset[str]) -> bool:
    """Whether a signal is asked for; an alias by its own name only, as ``core.detector.select`` has it."""
    return name in needs or (not name.endswith(".last") and any(fnmatchcase(name, need) for need in needs))


@dataclass(frozen=True)
class _Stored:
    files: Mapping[str, tuple[Path, tuple[int, ...]]]
    rows: Int[np.ndarray, " n"]
    device: torch.device

    def __iter__(self) -> Iterator[Signals]:
        maps = {name: np.memmap(path, dtype=np.float32, mode="r").reshape(-1, *shape) for name, (path, shape) in self.files.items()}
        for start in range(0, len(self.rows), BATCH):
            at = self.rows[start : start + BATCH]
            yield {name: torch.from_numpy(values[at]).to(self.device) for name, values in maps.items()}
