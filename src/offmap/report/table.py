"""The score table in memory: one row an item, in input order, on Arrow."""

import csv
import html
import importlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv
import pyarrow.json as pj
import pyarrow.parquet as pq

from offmap.core.errors import ConfigError, NotAvailableError, ReadError
from offmap.report.row import ANSWERS, FIXED, MEASURED, Columns, Row
from offmap.report.words import VERDICTS, middle, printable
from offmap.report.writer import shortest, write_table

if TYPE_CHECKING:
    import pandas
    import polars

__all__ = ["Columns", "Row", "Table"]

SHOWN = 12
"""Rows of a table that its repr shows."""
BRIEF = ("item", "verdict", "surprise_bits", "bits_extrapolated", "score", "reason", "cause")
"""Columns of the repr. Identifiers and manifest columns are never among them."""


class Table:
    """A score table.

    Args:
        arrow: the data; must have the fixed columns of ``offmap.report.row.FIXED``.

    Raises:
        ConfigError: a fixed column is missing.
    """

    def __init__(self, arrow: pa.Table) -> None:
        missing = [name for name in FIXED if name not in arrow.column_names]
        if missing:
            raise ConfigError(f"this is no score table of offmap: the columns {', '.join(missing)} are missing")
        self.arrow = arrow

    @classmethod
    def from_rows(cls, rows: Iterable[Row], *, columns: Columns | None = None) -> "Table":
        """Build from rows.

        Args:
            rows: in the order of the table.
            columns: the columns beyond the fixed ones; those that the rows fill if not given.
        """
        listed = list(rows)
        return cls((columns or Columns.of(listed)).arrow(listed))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Table":
        """Read a table that offmap wrote, by its ending.

        Raises:
            ConfigError: another ending than .csv, .jsonl, .parquet, or no score table.
            ReadError: the file is missing or damaged.
        """
        place = Path(path)
        try:
            arrow = _read(place)
        except (OSError, ValueError) as error:
            raise ReadError("unreadable", f"{str(place)!r} cannot be read as a score table ({type(error).__name__})") from error
        return cls(arrow)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One dictionary a row; missing values are None. Scores are the shortest floats that read back to their float32."""
        return list(self)

    @property
    def counts(self) -> dict[str, int]:
        """Number of items by verdict, all four always there."""
        found = Counter(self.arrow.column("verdict").to_pylist())
        return {verdict: found[verdict] for verdict in VERDICTS}

    def worklist(self) -> "Table":
        """Sorted by (surprise_bits, bits_extrapolated, score), descending; items without a score come last."""
        keys = ("surprise_bits", "bits_extrapolated", "score")
        numbered = self.arrow.append_column("", pa.array(range(len(self)), pa.int64()))
        order = pc.sort_indices(numbered, sort_keys=[*((key, "descending") for key in keys), ("", "ascending")])
        return Table(self.arrow.take(order))

    def to_pandas(self) -> "pandas.DataFrame":
        """As a pandas data frame.

        Raises:
            NotAvailableError: pandas is not installed.
        """
        _optional("pandas")
        frame: pandas.DataFrame = self.arrow.to_pandas()
        return frame

    def to_polars(self) -> "polars.DataFrame":
        """As a polars data frame.

        Raises:
            NotAvailableError: polars is not installed.
        """
        return _optional("polars").from_arrow(self.arrow)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as ``.csv``, ``.jsonl`` or ``.parquet``; complete or not at all.

        Raises:
            ConfigError: another ending, or the place cannot be written.
        """
        write_table(self.arrow, path)

    def __len__(self) -> int:
        return int(self.arrow.num_rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        names = self.arrow.column_names
        for batch in self.arrow.to_batches(max_chunksize=4096):
            for row in zip(*(shortest(column) for column in pa.Table.from_batches([batch]).columns), strict=True):
                yield dict(zip(names, row, strict=True))

    def __repr__(self) -> str:
        shown = [_cells(row) for row in Table(self.arrow.slice(0, SHOWN))]
        widths = [max(map(len, column)) for column in zip(BRIEF, *shown, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip() for cells in (BRIEF, *shown)]
        more = [f"... {len(self) - SHOWN:,} more"] if len(self) > SHOWN else []
        return "\n".join([f"Table({self._summary()})", *(f"  {line}" for line in lines if shown), *more])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in BRIEF)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(row)) + "</tr>" for row in Table(self.arrow.slice(0, SHOWN))
        )
        more = f"<p>and {len(self) - SHOWN:,} more</p>" if len(self) > SHOWN else ""
        return f"<p>{self._summary()}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"

    def _summary(self) -> str:
        counts = ", ".join(f"{n:,} {VERDICTS[verdict].lower()}" for verdict, n in self.counts.items() if n)
        return f"{len(self):,} item{'' if len(self) == 1 else 's'}" + (f": {counts}" if counts else "")


def _cells(row: dict[str, Any]) -> list[str]:
    values = [middle(printable(row["item"]), 48), *(row[name] for name in BRIEF[1:])]
    return ["" if value is None else f"{value:.4g}" if isinstance(value, float) else printable(str(value)) for value in values]


def _read(path: Path) -> pa.Table:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return pq.read_table(path)
    if suffix not in (".csv", ".jsonl"):
        raise ConfigError(f"{str(path)!r}: a score table ends in .csv, .jsonl or .parquet")
    with path.open(encoding="utf-8", newline="") as file:
        names = list(json.loads(file.readline() or "{}")) if suffix == ".jsonl" else next(csv.reader(file), [])
    kinds = pa.schema([pa.field(name, {**FIXED, **ANSWERS, **MEASURED}.get(name, _kind(name))) for name in names])
    if suffix == ".jsonl":
        return pj.read_json(path, parse_options=pj.ParseOptions(explicit_schema=kinds)) if names else kinds.empty_table()
    convert = pv.ConvertOptions(column_types=kinds, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=True)
    return pv.read_csv(path, parse_options=pv.ParseOptions(newlines_in_values=True), convert_options=convert)


def _kind(name: str) -> pa.DataType:
    return pa.float32() if name.startswith("score.") else pa.string()


def _optional(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise NotAvailableError(f"{package} is not installed: pip install 'offmap[frames]'") from error
