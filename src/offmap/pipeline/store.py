"""Signals of the in-distribution images while a gate is fitted: vectors in memory, maps on disk, read again in batches.

Several vectors an image, such as the logits ``(N, S, K)`` of S passes, are kept as vectors are: all rows, in memory.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from offmap.core.detector import missing, select
from offmap.core.errors import ConfigError
from offmap.core.types import STATIC, Signals

_NOTHING = torch.empty(0)
MAP_BYTES = 16 * 1024**3


class SignalStore:
    """Append batches, then read any rows again, any number of times.

    Args:
        layers: layers that ``features.*`` stands for, shallow to deep; empty = all kept ones.
        map_rows: feature maps are kept for the first so many rows only (maps are large; their statistics need few images).
        map_bytes: bound of the temporary files that hold feature maps.
    """

    def __init__(self, layers: Sequence[str] = (), *, map_rows: int | None = None, map_bytes: int = MAP_BYTES) -> None:
        self._layers = tuple(layers)
        self._vectors: dict[str, list[np.ndarray]] = {}
        self._static: dict[str, Tensor] = {}
        self._maps: dict[str, tuple[Path, tuple[int, ...]]] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="offmap-fit-")
        self._map_rows = map_rows
        self._map_bytes = map_bytes
        self._written = 0
        self.n = 0

    def __enter__(self) -> "SignalStore":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._folder.cleanup()

    def append(self, signals: Signals) -> None:
        """Keep one batch.

        Raises:
            ConfigError: feature maps would outgrow ``map_bytes``.
        """
        count = next((int(v.shape[0]) for k, v in signals.items() if k not in STATIC), 0)
        for name, tensor in signals.items():
            if name in STATIC:
                self._static[name] = tensor.detach().cpu()
            elif name.endswith(".last") and name.startswith("feature_map"):
                continue
            elif _is_map(name, tensor):
                self._append_map(name, tensor)
            else:
                self._vectors.setdefault(name, []).append(tensor.detach().cpu().numpy())
        self.n += count

    def add(self, name: str, values: np.ndarray) -> None:
        """A signal that is known for all rows at once, such as labels ``(N,)``."""
        self._vectors[name] = [values]

    def _append_map(self, name: str, tensor: Tensor) -> None:
        keep = tensor if self._map_rows is None else tensor[: max(0, self._map_rows - self.n)]
        if keep.shape[0] == 0:
            return
        data = np.ascontiguousarray(keep.detach().cpu().numpy(), dtype=np.float32)
        self._written += data.nbytes
        if self._written > self._map_bytes:
            raise ConfigError(
                f"feature maps of {self.n} images exceed {self._map_bytes / 1e9:.0f} GB on disk; "
                "fit on fewer with --limit, or name fewer layers"
            )
        path = Path(self._folder.name) / f"{len(self._maps)}.f32" if name not in self._maps else self._maps[name][0]
        self._maps[name] = (path, data.shape[1:])
        with path.open("ab") as file:
            data.tofile(file)

    def vector(self, name: str) -> np.ndarray:
        """One vector signal of all rows, ``(N, D)``, ``(N, S, K)`` or ``(N,)``."""
        parts = self._vectors[name]
        if len(parts) > 1:
            self._vectors[name] = parts = [np.concatenate(parts)]
        return parts[0]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all signals kept."""
        return (*self._vectors, *self._maps, *self._static)

    def has_map(self, rows: np.ndarray) -> np.ndarray:
        """Those of ``rows`` whose feature maps were kept."""
        return rows if self._map_rows is None else rows[rows < self._map_rows]

    def batches(self, rows: np.ndarray, needs: Iterable[str], *, device: torch.device, size: int = 256) -> "Rows":
        """Batches of some rows with the named signals, to be iterated any number of times."""
        wanted = tuple(needs)
        names = [n for n in self.names if any(self._answers(n, w) for w in wanted)]
        lacking = missing(wanted, [*names, *(["feature_map.last"] if self._maps else [])], exact=True)
        if lacking:
            raise ConfigError(f"signals {', '.join(lacking)} were not kept; kept: {', '.join(self.names)}")
        size = min(size, 32) if any(n in self._maps for n in names) else size
        return Rows(self, np.asarray(rows), tuple(names), "feature_map.last" in wanted, device, size)

    def _answers(self, name: str, want: str) -> bool:
        if "*" not in want:
            return name == want
        return name in select({name: _NOTHING}, want) and (not self._layers or name.partition(".")[2] in self._layers)

    def read(self, rows: np.ndarray, names: Sequence[str], *, last_map: bool, device: torch.device) -> dict[str, Tensor]:
        """The named signals of some rows."""
        out: dict[str, Tensor] = {}
        for name in names:
            if name in self._static:
                out[name] = self._static[name].to(device)
            elif name in self._maps:
                out[name] = torch.from_numpy(self._map(name)[rows]).to(device)
            else:
                out[name] = torch.from_numpy(self.vector(name)[rows]).to(device)
        if last_map:
            deepest = [name for name in self._maps if name.startswith("feature_map.")][-1]
            out["feature_map.last"] = torch.from_numpy(self._map(deepest)[rows]).to(device)
        return out

    def _map(self, name: str) -> np.ndarray:
        path, shape = self._maps[name]
        return np.memmap(path, dtype=np.float32, mode="r").reshape(-1, *shape)


def _is_map(name: str, tensor: Tensor) -> bool:
    return tensor.ndim > 3 or (tensor.ndim == 3 and name.startswith("feature_map."))


@dataclass(frozen=True)
class Rows:
    """Some rows of a store as batches of signals."""

    store: SignalStore
    rows: np.ndarray
    names: tuple[str, ...]
    last_map: bool
    device: torch.device
    size: int

    def __iter__(self) -> Iterator[Signals]:
        for start in range(0, len(self.rows), self.size):
            yield self.store.read(self.rows[start : start + self.size], self.names, last_map=self.last_map, device=self.device)

    def __len__(self) -> int:
        return len(self.rows)
