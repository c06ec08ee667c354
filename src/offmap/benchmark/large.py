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

    Args:
        needs: names or patterns of the signals to keep.
    """

    def __init__(self, needs: frozenset[str]) -> None:
        self._needs = needs
        self._folder = tempfile.TemporaryDirectory(prefix="offmap-benchmark-")
        self._files: dict[str, tuple[Path, tuple[int, ...]]] = {}
        self._at: list[int] = []
        self._written = 0

    def __enter__(self) -> "LargeSignals":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._folder.cleanup()

    def add(self, at: Int[np.ndarray, " n"], images: Sequence[Image], signals: Mapping[str, Tensor]) -> None:
        """Keep one batch.

        Raises:
            ConfigError: the files outgrow ``MOST_BYTES``.
        """
        self._at += at.tolist()
        for name, value in signals.items():
            if name in STATIC or name == "feature_map.last" or not any(fnmatchcase(name, need) for need in self._needs):
                continue
            data = np.ascontiguousarray(value.numpy(), dtype=np.float32)
            self._written += data.nbytes
            if self._written > MOST_BYTES:
                raise ConfigError(
                    f"maps of {len(self._at)} images exceed {MOST_BYTES / 1e9:.0f} GB on disk: "
                    "leave out methods that read maps with --methods, or lower max_id in the suite"
                )
            path = self._files.setdefault(name, (Path(self._folder.name) / f"{len(self._files)}.f32", data.shape[1:]))[0]
            with path.open("ab") as file:
                data.tofile(file)

    def batches(self, items: Int[np.ndarray, " n"], needs: frozenset[str], device: torch.device) -> Iterable[Signals]:
        """Batches of some items, by position, with the named signals; those that were refused are left out."""
        place = {item: row for row, item in enumerate(self._at)}
        rows = np.array([place[i] for i in items.tolist() if i in place], dtype=np.int64)
        chosen = {name: where for name, where in self._files.items() if any(fnmatchcase(name, need) for need in needs)}
        last = [name for name in self._files if name.startswith("feature_map.")][-1:] if "feature_map.last" in needs else []
        return _Stored({**chosen, **({"feature_map.last": self._files[last[0]]} if last else {})}, rows, device)


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
