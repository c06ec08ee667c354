"""Answers of a classifier, read from a CSV table and joined with a score table.

Columns: ``path``; ``label`` and ``prob.<class>`` for every class, or ``correct`` (0 or 1); optional ``confidence`` (higher = surer),
``ood`` (0 or 1), ``split``, ``group`` (images of one patient). Every other column, and ``label``, divides the images into strata.
"""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import join, normpath
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from offmap.core.component import nearest
from offmap.core.errors import ConfigError
from offmap.pipeline.inputs import PathLike
from offmap.report.table import Table

OOD_FAILURE = ("always", "wrong")
"""When an out-of-distribution image counts as a failure."""

RESERVED = ("path", "label", "correct", "confidence", "ood", "split", "group")
PROBABILITY = "prob."

SUM = 0.01
"""Largest distance of a sum of probabilities from 1, so that rounded ones pass."""

MOST_VALUES = 20
"""Values of a column up to which it makes strata unless it is asked for."""

_TRUTH = {"1": 1.0, "0": 0.0, "true": 1.0, "false": 0.0}


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a classifier answered and how sure it was, one entry an image.

    Args:
        paths: as written.
        loss: 1 = failure, 0 = right, NaN = not known (only in splits without labels).
        ood: marked as out-of-distribution.
        confidences: by name, higher = surer; ``-inf`` where the image was not assessed.
        probability: that of the answer; empty where there are no probabilities.
        splits, groups: "" where none is given.
        strata: values by column.
        notes: what to know, for people.
    """

    paths: tuple[str, ...]
    loss: Float[np.ndarray, " n"]
    ood: Bool[np.ndarray, " n"]
    confidences: Mapping[str, Float[np.ndarray, " n"]]
    probability: Float[np.ndarray, " _"]
    splits: tuple[str, ...]
    groups: tuple[str, ...]
    strata: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()


def read(
    predictions: PathLike, *, scores: PathLike | Table | None = None, ood_failure: str = "always", strata: Sequence[str] = ()
) -> Predictions:
    """Read and check.

    Args:
        predictions: CSV table.
        scores: score table of ``offmap score``, or its file; every path must be an item of it (as written, or relative to the CSV).
        ood_failure: ``always``: an image marked ``ood`` is a failure whatever the answer; ``wrong``: only when the answer is wrong.
        strata: columns that divide the images; all with at most 20 values if not given.

    Raises:
        ConfigError: a column is missing, a value is not what it should be, an image is there twice, has no label or is not in the scores.
        ReadError: the score table cannot be read.
    """
    if ood_failure not in OOD_FAILURE:
        raise ConfigError(f"ood_failure = {ood_failure!r} must be 'always' or 'wrong'")
    table = _Columns.read(Path(predictions))
    table.refuse_duplicates()
    n = len(table.lines)
    ood = table.truths("ood") == 1 if "ood" in table.cells else np.zeros(n, dtype=np.bool_)
    splits = table.texts("split")
    classes, probabilities = table.probabilities()
    loss = table.loss(classes, probabilities, ood)
    judged = ood & (ood_failure == "always")
    loss = np.where(_unlabelled(table, loss, splits, judged), np.nan, np.where(judged, 1.0, loss))
    confidences = _of_probabilities(probabilities)
    if "confidence" in table.cells:
        confidences["confidence"] = table.numbers("confidence")
    if scores is not None:
        found = scores if isinstance(scores, Table) else Table.load(scores)
        confidences |= _of_scores(table, found)
    if not confidences:
        raise ConfigError(
            f"{table.name}: nothing says how sure an answer is; add prob.<class> columns, a column confidence, or a score table"
        )
    kept, notes = table.strata(strata)
    top = probabilities.max(axis=1) if classes else np.empty(0)
    return Predictions(tuple(table.cells["path"]), loss, ood, confidences, top, splits, table.texts("group"), kept, notes)


@dataclass(frozen=True, eq=False)
class _Columns:
    """A CSV table as text: cells by column, and the line of the file where each row ends."""

    path: Path
    cells: Mapping[str, list[str]]
    lines: list[int]

    @property
    def name(self) -> str:
        return f"predictions {self.path}"

    @classmethod
    def read(cls, path: Path) -> "_Columns":
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.reader(file)
                header = next(reader, [])
                rows, lines = [], []
                for row in reader:
                    if row:
                        rows.append(row)
                        lines.append(reader.line_num)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ConfigError(f"predictions {path}: cannot be read ({type(error).__name__}); a UTF-8 CSV is expected") from None
        twice = [name for name, count in Counter(header).items() if count > 1]
        if "path" not in header or twice:
            problem = f"the column {twice[0]!r} is there twice" if twice else f"the column 'path' is missing{nearest('path', header)}"
            raise ConfigError(f"predictions {path}: {problem}. Columns: {', '.join(header) or 'none'}")
        for row, line in zip(rows, lines, strict=True):
            if len(row) != len(header):
                raise ConfigError(
                    f"predictions {path}, line {line}: {len(row)} fields, {len(header)} expected; quote a path that holds a comma"
                )
        if not rows:
            raise ConfigError(f"predictions {path}: there is no row below the header")
        return cls(path, dict(zip(header, (list(column) for column in zip(*rows, strict=True)), strict=True)), lines)

    def at(self, row: int) -> str:
        return f"{self.name}, line {self.lines[row]}"

    def texts(self, column: str) -> tuple[str, ...]:
        return tuple(self.cells.get(column) or [""] * len(self.lines))

    def numbers(self, column: str) -> Float[np.ndarray, " n"]:
        """Finite numbers."""
        cells = self.cells[column]
        try:
            values = np.array(cells, dtype=np.float64)
        except ValueError:
            values = np.array([_number(cell) for cell in cells])
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            more = f" ({len(bad)} such rows)" if len(bad) > 1 else ""
            raise ConfigError(f"{self.at(int(bad[0]))}: {column} = {cells[bad[0]]!r} is no finite number{more}")
        return values

    def truths(self, column: str) -> Float[np.ndarray, " n"]:
        """0 and 1; NaN where the cell is empty."""
        out = []
        for row, cell in enumerate(self.cells[column]):
            text = cell.strip().lower()
            if text and text not in _TRUTH:
                raise ConfigError(f"{self.at(row)}: {column} = {cell!r} must be 0 or 1")
            out.append(_TRUTH[text] if text else np.nan)
        return np.array(out, dtype=np.float64)

    def refuse_duplicates(self) -> None:
        seen: dict[str, int] = {}
        for row, path in enumerate(self.cells["path"]):
            if not path:
                raise ConfigError(f"{self.at(row)}: the path is empty")
            if path in seen:
                raise ConfigError(
                    f"{self.at(row)}: {path!r} is there already, in line {self.lines[seen[path]]}; one row an image is expected"
                )
            seen[path] = row

    def probabilities(self) -> tuple[tuple[str, ...], Float[np.ndarray, "n k"]]:
        """Classes, and their probabilities, which sum to 1."""
        names = [name for name in self.cells if name.startswith(PROBABILITY)]
        if not names:
            return (), np.empty((len(self.lines), 0))
        if len(names) == 1:
            raise ConfigError(f"{self.name}: {names[0]!r} is the only class; add the column of every other one (for two classes: 1 - p)")
        values = np.stack([self.numbers(name) for name in names], axis=1)
        outside = np.argwhere((values < 0) | (values > 1))
        if len(outside):
            row, k = outside[0].tolist()
            raise ConfigError(
                f"{self.at(row)}: {names[k]} = {values[row, k]:g} is outside [0, 1]; probabilities (after softmax) are expected, no logits"
            )
        off = np.flatnonzero(np.abs(values.sum(axis=1) - 1) > SUM)
        if len(off):
            row = int(off[0])
            raise ConfigError(
                f"{self.at(row)}: the probabilities sum to {values[row].sum():.4g}, not to 1 ({len(off)} such rows); "
                "for a classifier with several answers an image (sigmoid) evaluate one answer at a time, as p and 1 - p"
            )
        return tuple(name.removeprefix(PROBABILITY) for name in names), values

    def loss(self, classes: Sequence[str], probabilities: Float[np.ndarray, "n k"], ood: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """1 where the answer is wrong; NaN where it is not known."""
        if "correct" in self.cells:
            return 1 - self.truths("correct")
        if "label" not in self.cells:
            raise ConfigError(f"{self.name}: a column 'label' with prob.<class> columns, or a column 'correct', is expected")
        if not classes:
            raise ConfigError(
                f"{self.name}: there are labels but no probabilities, so that no answer is known; add a column prob.<class> for every "
                "class, or give 'correct' (0 or 1) instead of 'label'"
            )
        labels, known = self.cells["label"], set(classes)
        for row, label in enumerate(labels):
            if label and label not in known and not ood[row]:
                raise ConfigError(f"{self.at(row)}: label {label!r} has no column {PROBABILITY}{label}{nearest(label, list(classes))}")
        judged = {label for label, odd in zip(labels, ood.tolist(), strict=True) if label and not odd}
        if len(judged) == 1:
            raise ConfigError(
                f"{self.name}: all labels are {next(iter(judged))!r}, so that the accuracy would be that of one class; "
                "add images of the others, or give the column 'correct' if this is meant"
            )
        answers = [classes[k] for k in probabilities.argmax(axis=1).tolist()]
        return np.array([float(a != b) if b else np.nan for a, b in zip(answers, labels, strict=True)])

    def strata(self, asked: Sequence[str]) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
        """Columns that divide the images, and what was left out."""
        for column in asked:
            if column not in self.cells:
                raise ConfigError(f"{self.name}: there is no column {column!r}{nearest(column, list(self.cells))} to divide the images by")
        free = [c for c in self.cells if c == "label" or not (c in RESERVED or c.startswith(PROBABILITY))]
        counts = {column: len(set(self.cells[column])) for column in free}
        kept = list(asked) or [column for column in free if 2 <= counts[column] <= MOST_VALUES]
        many = [column for column in free if counts[column] > MOST_VALUES and not asked]
        notes = tuple(f"The column {c!r} has {counts[c]:,} values and makes no strata; name it as a stratum if it should." for c in many)
        return {column: tuple(self.cells[column]) for column in kept}, notes


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")


def _unlabelled(table: _Columns, loss: np.ndarray, splits: Sequence[str], judged: Bool[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Images of splits without any label; a split is labelled wholly or not at all. Images ``judged`` without one do not count."""
    of = np.array(splits)
    out = np.zeros(len(of), dtype=np.bool_)
    for split in dict.fromkeys(splits):
        inside = of == split
        asked = inside & ~judged
        missing = np.flatnonzero(asked & np.isnan(loss))
        if len(missing) == 0:
            continue
        if len(missing) < asked.sum() or len(set(splits)) == 1:
            where = f" of split {split!r}" if split else ""
            raise ConfigError(
                f"{table.at(int(missing[0]))}: {len(missing)} of {asked.sum()} images{where} have no label; "
                "complete them, or put the images without one into a split of their own"
            )
        out |= inside
    return out


def _of_probabilities(probabilities: Float[np.ndarray, "n k"]) -> dict[str, np.ndarray]:
    """Two classes rank alike by either, so that one is enough."""
    from scipy.special import xlogy

    if probabilities.shape[1] == 0:
        return {}
    found: dict[str, np.ndarray] = {"max_probability": probabilities.max(axis=1)}
    if probabilities.shape[1] > 2:
        found["negative_entropy"] = xlogy(probabilities, probabilities).sum(axis=1)
    return found


def _of_scores(table: _Columns, scores: Table) -> dict[str, np.ndarray]:
    """The negative of each score, as a score is higher for what is odder; ``-inf`` for items that were not assessed."""
    items = [str(item) for item in scores.arrow.column("item").to_pylist()]
    rows = _matched(table, items)
    parts = [name for name in scores.arrow.column_names if name.startswith("score.")]
    out = {}
    for column in ["score", *(parts if len(parts) > 1 else [])]:
        values = np.array([np.inf if v is None else v for v in scores.arrow.column(column).to_pylist()], dtype=np.float64)
        out[column] = -values[rows]
    return out


def _matched(table: _Columns, items: Sequence[str]) -> list[int]:
    """Row of the score table for every path."""
    where: dict[str, int] = {}
    count = Counter(items)
    for row, item in enumerate(items):
        where.setdefault(normpath(item), row)
    rows, unknown = [], []
    for row, path in enumerate(table.cells["path"]):
        found = where.get(normpath(path), where.get(normpath(join(table.path.parent, path)), -1))
        if found < 0:
            unknown.append(row)
        elif count[items[found]] > 1:
            raise ConfigError(f"{table.at(row)}: {path!r} is {count[items[found]]} items of the score table; one row an image is expected")
        rows.append(found)
    if unknown:
        first = unknown[0]
        raise ConfigError(
            f"{table.at(first)}: {table.cells['path'][first]!r} is no item of the score table ({len(unknown)} of {len(rows)} paths "
            f"are not); its first item is {items[0]!r}. Score every image, or write the paths as in the score table"
            if items
            else f"{table.name}: the score table has no row"
        )
    return rows
