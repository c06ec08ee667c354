"""Score tables on disk: CSV, JSON lines, Parquet; written in chunks and renamed at the end.

**CSV** follows RFC 4180: UTF-8 without a byte-order mark, lines end in CRLF, fields with a comma, a quote or a line break
are quoted, null is an empty field. Numbers have the fewest digits that read back to the same float32 (scores) or
float64 (p-values, bits).

Names of items are written exactly as they are, also when they begin with ``=``, ``+``, ``-`` or ``@``, because other
programs join on them. A spreadsheet may take such a name for a formula when the file is double-clicked: import the file
there as text, or use Parquet.
"""

import contextlib
import csv
import json
import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from offmap.core.errors import ConfigError
from offmap.report.row import Columns, Row

CHUNK = 4096
"""Rows held in memory before they are written."""


class _Sink(Protocol):
    def write(self, table: pa.Table) -> None: ...

    def close(self) -> None: ...


class _Csv:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._file = path.open("x", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file)
        self._writer.writerow(schema.names)

    def write(self, table: pa.Table) -> None:
        columns = [pc.cast(column, pa.string()).to_pylist() for column in table.columns]
        self._writer.writerows(zip(*columns, strict=True))

    def close(self) -> None:
        self._file.close()


class _JsonLines:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._file = path.open("x", encoding="utf-8", newline="\n")
        self._names = schema.names

    def write(self, table: pa.Table) -> None:
        for row in zip(*(shortest(column) for column in table.columns), strict=True):
            self._file.write(json.dumps(dict(zip(self._names, row, strict=True)), ensure_ascii=False, allow_nan=False) + "\n")

    def close(self) -> None:
        self._file.close()


class _Parquet:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table)

    def close(self) -> None:
        self._writer.close()


_SINKS: dict[str, Callable[[Path, pa.Schema], _Sink]] = {".csv": _Csv, ".jsonl": _JsonLines, ".parquet": _Parquet}


def shortest(column: pa.ChunkedArray) -> list[object]:
    """Values of a column; a float32 as the Python float with the fewest digits that reads back to it."""
    if column.type != pa.float32():
        return list(column.to_pylist())
    return [None if text is None else float(text) for text in pc.cast(column, pa.string()).to_pylist()]


class TableWriter:
    """Writes a score table row by row, in constant memory.

        with TableWriter("out/scores.csv", parts=["knn", "vim"]) as writer:
            for row in rows:
                writer.append(row)

    Rows go to a hidden file beside the target, which takes the target's place when the ``with`` block ends well. When it ends
    with an exception (Ctrl-C as well) the hidden file is removed and what was at the target before is untouched.

    Args:
        path: ends in ``.csv``, ``.jsonl`` or ``.parquet``; a missing folder is made.
        parts, identifiers, meta, answers, measured: which columns there are beyond the fixed ones, see ``offmap.report.row.Columns``.
        chunk: rows held in memory before they are written.

    Raises:
        ConfigError: another ending, a folder in the way, a place that cannot be written, a row with an unknown column.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        parts: Sequence[str] = (),
        identifiers: Sequence[str] = (),
        meta: Sequence[str] = (),
        answers: bool = False,
        measured: bool = False,
        chunk: int = CHUNK,
    ) -> None:
        self.path = Path(path)
        self.columns = Columns(tuple(parts), tuple(identifiers), tuple(meta), answers, measured)
        self.count = 0
        self._rows: list[Row] = []
        self._chunk = chunk
        self._output = _Output(self.path, self.columns.schema)

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def append(self, row: Row) -> None:
        """Add one row."""
        self._rows.append(row)
        self.count += 1
        if len(self._rows) >= self._chunk:
            self._flush()

    def extend(self, rows: Iterable[Row]) -> None:
        """Add rows."""
        for row in rows:
            self.append(row)

    def close(self) -> None:
        """Write what is left and put the file in its place."""
        try:
            self._flush()
            self._output.finish()
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Remove what was written; the target stays as it was."""
        self._rows = []
        self._output.discard()

    def _flush(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            self._output.write(self.columns.arrow(rows))


def write_table(table: pa.Table, path: str | os.PathLike[str]) -> None:
    """Write an Arrow score table at once, by the ending of ``path``.

    Raises:
        ConfigError: as ``TableWriter``.
    """
    output = _Output(Path(path), table.schema)
    try:
        for batch in table.to_batches(max_chunksize=CHUNK):
            output.write(pa.Table.from_batches([batch]))
        output.finish()
    except BaseException:
        output.discard()
        raise


class _Output:
    """A sink on a hidden file beside ``path``, renamed by ``finish``, removed by ``discard``; both may be called twice."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        open_sink = _SINKS.get(path.suffix.lower())
        if open_sink is None:
            raise ConfigError(f"{str(path)!r}: a score table ends in .csv, .jsonl or .parquet, not {path.suffix or 'without any'!r}")
        if path.is_dir():
            raise ConfigError(f"{str(path)!r} is a folder; name a file in it, such as {str(path / ('scores' + path.suffix))!r}")
        self._path = path
        self._part = path.with_name(f".{path.stem[:60]}-{secrets.token_hex(4)}.part")
        self._open = True
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._sink = open_sink(self._part, schema)
        except OSError as error:
            raise ConfigError(
                f"{str(path)!r} cannot be written: {error.strerror or 'no access'}; choose another place with --out"
            ) from error

    def write(self, table: pa.Table) -> None:
        self._sink.write(table)

    def finish(self) -> None:
        if self._open:
            self._sink.close()
            self._part.replace(self._path)
            self._open = False

    def discard(self) -> None:
        if self._open:
            self._open = False
            with contextlib.suppress(Exception):
                self._sink.close()
            self._part.unlink(missing_ok=True)
