"""Feature cache by content: an image that was encoded once, with the same weights and steps, is not encoded again.

One SQLite file per (weights, steps, signals); a row per image: digest, header, vectors, each with its shape (logits of several
passes are ``(S, K)``). No pixels, no names, no patient data.
"""

import hashlib
import json
import math
import os
import sqlite3
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 2
"""Of the rows; another format lies in other files."""

LIMIT_BYTES = 2 * 1024**3


def root() -> Path:
    """``$OFFMAP_CACHE`` or the platform's cache folder."""
    given = os.environ.get("OFFMAP_CACHE")
    if given:
        return Path(given)
    base = Path.home() / "Library/Caches" if sys.platform == "darwin" else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base / "offmap"


def location(*fingerprint: Any) -> Path:
    """File for one combination of weights, steps and version.

    Args:
        fingerprint: JSON values that together decide the features.
    """
    name = hashlib.sha256(json.dumps((FORMAT, *fingerprint), sort_keys=True, default=str).encode()).hexdigest()[:24]
    return root() / "features" / f"{name}.sqlite"


class FeatureCache:
    """Vectors by digest. Opens lazily; one that cannot be opened or written behaves as empty; threads may share it."""

    def __init__(self, path: Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self._path = path
        self._limit = limit_bytes
        self._connection: sqlite3.Connection | None = None
        self._broken = False
        self._lock = threading.RLock()

    def has(self, digest: str) -> bool:
        """Whether this content was encoded before."""
        return bool(self._query("SELECT 1 FROM features WHERE digest = ?", (digest,)))

    def get(self, digest: str) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """Header and vectors ``(D,)`` or ``(S, K)`` of one image, or None."""
        found = self._query("SELECT header, names, vectors FROM features WHERE digest = ?", (digest,))
        if not found:
            return None
        header, names, blob = found[0]
        flat, out, at = np.frombuffer(blob, dtype=np.float32), {}, 0
        for name, shape in json.loads(names):
            size = math.prod(shape)
            out[name] = flat[at : at + size].reshape(shape)
            at += size
        return json.loads(header), out

    def put(self, rows: Sequence[tuple[str, Mapping[str, Any], Mapping[str, np.ndarray]]]) -> None:
        """Keep ``(digest, header, vectors)`` of several images in one transaction."""
        values = []
        for digest, header, vectors in rows:
            names = json.dumps([(k, v.shape) for k, v in vectors.items()])
            blob = b"".join(np.ascontiguousarray(v, dtype=np.float32).tobytes() for v in vectors.values())
            values.append((digest, json.dumps(header), names, blob))
        with self._lock:
            connection = self._open()
            if connection is None:
                return
            try:
                with connection:
                    connection.executemany("INSERT OR REPLACE INTO features VALUES (?, ?, ?, ?)", values)
            except sqlite3.Error:
                self._broken = True

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _query(self, sql: str, values: tuple[str, ...]) -> list[Any]:
        with self._lock:
            connection = self._open()
            if connection is None:
                return []
            try:
                return connection.execute(sql, values).fetchall()
            except sqlite3.Error:
                self._broken = True
                return []

    def _open(self) -> sqlite3.Connection | None:
        if self._broken or self._connection is not None:
            return None if self._broken else self._connection
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.exists() and self._path.stat().st_size > self._limit:
                for suffix in ("", "-wal", "-shm"):
                    self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            connection = sqlite3.connect(self._path, timeout=10, check_same_thread=False)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("CREATE TABLE IF NOT EXISTS features (digest TEXT PRIMARY KEY, header TEXT, names TEXT, vectors BLOB)")
            self._connection = connection
        except (sqlite3.Error, OSError):
            self._broken = True
        return None if self._broken else self._connection
