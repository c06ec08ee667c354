"""One row of a score table, and the columns that a table has."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa

from offmap.core.component import nearest
from offmap.core.errors import ConfigError, SignalError
from offmap.core.types import Status, Verdict
from offmap.report import answer as answers
from offmap.report.answer import Answer

FIXED: Mapping[str, pa.DataType] = MappingProxyType(
    {
        "item": pa.string(),
        "status": pa.string(),
        "reason": pa.string(),
        "score": pa.float32(),
        "p_value": pa.float64(),
        "surprise_bits": pa.float64(),
        "bits_extrapolated": pa.float64(),
        "verdict": pa.string(),
        "cause": pa.string(),
        "cause_confidence": pa.float64(),
    }
)
"""The columns that every score table has, in their order."""

ANSWERS: Mapping[str, pa.DataType] = MappingProxyType({"predicted": pa.string(), "max_probability": pa.float64(), "entropy": pa.float64()})
"""The columns of a table whose gate is on a classifier: its answer, the probability of it, and the entropy of all in nats."""


MEASURED: Mapping[str, pa.DataType] = MappingProxyType({"residual": pa.float64(), "psnr": pa.float64()})
"""The columns of a table of measurements: what is left of each, in deviations of its noise, and decibels of its reconstruction."""


@dataclass(frozen=True, slots=True)
class Row:
    """What is known of one item.

    Args:
        item: path as given; ``path::key[17]``, ``path#3``, or the folder of a volume. Need not be unique.
        status: ``ok`` or ``not_assessed``.
        reason: code from ``offmap.core.types.REASONS`` when not assessed or flagged; else empty.
        score: raw, higher = more OOD; None when not assessed. Kept as float32.
        p_value: conformal, in (0, 1].
        surprise_bits: ``-log2(p_value)``, bits.
        bits_extrapolated: bits of the fitted tail; None below the cap.
        verdict: ``accept``, ``review``, ``reject`` or ``not_assessed``.
        cause, cause_confidence: empty and None until causes are fitted.
        parts: the columns ``score.<name>``, float32.
        meta: the columns ``meta.<name>``: columns of the manifest that named the item.
        identifiers: the columns ``id.<name>``: patient data, filled only when the user asked for it; never printed.
        answer: of the classifier, the columns ``predicted``, ``max_probability`` and ``entropy``; None without one.
        residual: of a measurement: root mean square of ``y - A x`` in deviations of the stated noise; known for some that were not
            assessed, too.
        psnr: of a reconstruction against its reference, dB; None without one.

    Raises:
        SignalError: a number is NaN or infinite, or status, score and verdict contradict each other.
    """

    item: str
    status: Status = "ok"
    reason: str = ""
    score: float | None = None
    p_value: float | None = None
    surprise_bits: float | None = None
    bits_extrapolated: float | None = None
    verdict: Verdict = "not_assessed"
    cause: str = ""
    cause_confidence: float | None = None
    parts: Mapping[str, float | None] = field(default_factory=dict)
    meta: Mapping[str, str] = field(default_factory=dict)
    identifiers: Mapping[str, str] = field(default_factory=dict, repr=False)
    answer: Answer | None = None
    residual: float | None = None
    psnr: float | None = None

    def __post_init__(self) -> None:
        for name in ("score", "p_value", "surprise_bits", "bits_extrapolated", "cause_confidence", *MEASURED):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, float(value))
        numbers = {f.name: getattr(self, f.name) for f in fields(self)} | {f"score.{k}": v for k, v in self.parts.items()}
        bad = [name for name, value in numbers.items() if isinstance(value, (float, np.floating)) and not math.isfinite(value)]
        if bad:
            raise SignalError(f"{self.item!r}: {', '.join(bad)} is not finite; such an image is 'not_assessed', never scored")
        if (self.status == "ok") != (self.score is not None) or (self.status == "ok") != (self.verdict != "not_assessed"):
            given = f"status {self.status!r}, verdict {self.verdict!r}, {'no' if self.score is None else 'a'} score"
            raise SignalError(f"{self.item!r}: {given}; an assessed item has a score and a verdict, another has neither")

    @property
    def rank(self) -> tuple[float, float, float]:
        """Sort key of the worklist, descending: bits, extrapolated bits, score; what is missing comes last."""
        known = (self.surprise_bits, self.bits_extrapolated, self.score)
        low, mid, high = (-math.inf if value is None else value for value in known)
        return low, mid, high


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns of one table: the fixed ones, those of answers, then ``score.<name>``, ``id.<name>``, ``meta.<name>``.

    Args:
        parts: names of the parts of the score, as the recipe calls them.
        identifiers: names of the patient data; empty unless the user asked for it.
        meta: names of the manifest's columns that are kept.
        answers: the classifier's answers have columns.
        measured: what is known of measurements has columns.

    Raises:
        ConfigError: a name occurs twice.
    """

    parts: tuple[str, ...] = ()
    identifiers: tuple[str, ...] = ()
    meta: tuple[str, ...] = ()
    answers: bool = False
    measured: bool = False

    def __post_init__(self) -> None:
        for names in (self.parts, self.identifiers, self.meta):
            twice = sorted({n for n in names if names.count(n) > 1})
            if twice:
                raise ConfigError(f"the score table would have the column {twice[0]!r} twice; give the parts and columns different names")

    @classmethod
    def of(cls, rows: Iterable[Row]) -> "Columns":
        """The columns that these rows fill, in order of appearance."""
        found: tuple[dict[str, None], dict[str, None], dict[str, None]] = ({}, {}, {})
        answered = measured = False
        for row in rows:
            answered = answered or row.answer is not None
            measured = measured or row.residual is not None
            for names, values in zip(found, (row.parts, row.identifiers, row.meta), strict=True):
                names.update(dict.fromkeys(values))
        parts, identifiers, meta = (tuple(names) for names in found)
        return cls(parts, identifiers, meta, answered, measured)

    @property
    def schema(self) -> pa.Schema:
        """Names and types; every column but ``item``, ``status`` and ``verdict`` may be null."""
        typed = dict(FIXED) | (dict(ANSWERS) if self.answers else {}) | (dict(MEASURED) if self.measured else {})
        typed |= {f"score.{name}": pa.float32() for name in self.parts}
        typed |= {f"id.{name}": pa.string() for name in self.identifiers}
        typed |= {f"meta.{name}": pa.string() for name in self.meta}
        return pa.schema([pa.field(name, kind, nullable=name not in ("item", "status", "verdict")) for name, kind in typed.items()])

    def arrow(self, rows: Sequence[Row]) -> pa.Table:
        """Rows as an Arrow table; empty text becomes null.

        Raises:
            ConfigError: a row has a part, an identifier or a manifest column that this table has not.
        """
        data: dict[str, list[Any]] = {name: [_plain(getattr(row, name)) for row in rows] for name in FIXED}
        if self.answers:
            data |= {name: [_plain(cell) for cell in cells] for name, cells in answers.columns([row.answer for row in rows]).items()}
        if self.measured:
            data |= {name: [getattr(row, name) for row in rows] for name in MEASURED}
        for prefix, attribute, names in self._groups():
            for row in rows:
                for name in getattr(row, attribute):
                    if name not in names:
                        has = ", ".join(names) or "none"
                        raise ConfigError(f"the score table has no column {prefix + name!r}{nearest(name, list(names))}. It has: {has}")
            data |= {prefix + name: [_plain(getattr(row, attribute).get(name)) for row in rows] for name in names}
        return pa.table(data, schema=self.schema)

    def _groups(self) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
        return ("score.", "parts", self.parts), ("id.", "identifiers", self.identifiers), ("meta.", "meta", self.meta)


def _plain(value: Any) -> Any:
    """Text that UTF-8 can hold: a file name with undecodable bytes gets them as ``\\udcXX``."""
    return value.encode("utf-8", "backslashreplace").decode("utf-8") or None if isinstance(value, str) else value
