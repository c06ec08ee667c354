"""Divides in-distribution images into parts so that no patient and no copy is in two of them.

Which part an image comes to depends on the seed and on content, never on the order of the files.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from offmap.core.duplicates import equal, join
from offmap.core.errors import ConfigError, DataError

Rows = Int[np.ndarray, " _"]


def split(
    groups: Sequence[str],
    digests: Sequence[str] = (),
    *,
    shares: Sequence[float] = (0.6, 0.2, 0.2),
    seed: int = 0,
    copies: Iterable[Sequence[int]] = (),
) -> tuple[Rows, ...]:
    """Parts of about the given shares (by default: to fit, held out, to calibrate), as near as the groups allow.

    Args:
        groups: one a row, equal for images of one patient; empty = unknown, the image stands alone.
        digests: SHA-256 of each file: equal ones stay together, and the division does not depend on the order of rows.
        shares: one a part, >= 0, summing to 1. A share of 0 gives an empty part.
        seed: which of the possible divisions.
        copies: groups of rows that stay together, as ``core.duplicates.find`` gives them.

    Returns:
        Row numbers of each part, sorted.

    Raises:
        ConfigError: shares out of range, or lengths that differ.
        DataError: fewer patients (or images) than parts.
    """
    if not shares or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ConfigError(f"shares = {list(shares)} must be numbers >= 0 with sum 1")
    return tuple(_divide(_units(groups, digests, copies), np.array(shares, dtype=np.float64), seed))


def folds(
    groups: Sequence[str],
    k: int = 5,
    *,
    digests: Sequence[str] = (),
    seed: int = 0,
    copies: Iterable[Sequence[int]] = (),
) -> tuple[Rows, ...]:
    """K parts of about equal size for cross-conformal calibration; ``digests``, ``seed``, ``copies`` as in ``split``.

    Raises:
        ConfigError: k < 2, or lengths that differ.
        DataError: fewer patients (or images) than folds.
    """
    if k < 2:
        raise ConfigError(f"k = {k} folds: 2 or more are needed")
    return split(groups, digests, shares=[1 / k] * k, seed=seed, copies=copies)


@dataclass(frozen=True)
class _Unit:
    """Rows that stay together, and a name that does not depend on their order."""

    rows: tuple[int, ...]
    name: str


def _units(groups: Sequence[str], digests: Sequence[str], copies: Iterable[Sequence[int]]) -> list[_Unit]:
    n = len(groups)
    if len(digests) not in (0, n):
        raise ConfigError(f"{n} groups and {len(digests)} digests: one of each for every image expected")
    links = [*equal(groups), *equal(digests), *((rows[0], row) for rows in copies for row in rows[1:])]
    names = [
        f"{group}\0{digest}" if group or digest else str(row)
        for row, (group, digest) in enumerate(zip(groups, digests or [""] * n, strict=True))
    ]
    members: dict[int, list[int]] = {}
    for row, label in enumerate(join(n, links).tolist()):
        members.setdefault(label, []).append(row)
    return [_Unit(tuple(rows), min(names[row] for row in rows)) for rows in members.values()]


def _divide(units: list[_Unit], shares: np.ndarray, seed: int) -> list[Rows]:
    """Random order; each unit goes to the part that lacks most; then single units move where that brings the sizes nearer.

    Only units of more than a tenth of all images are placed first: were all sorted by size, patients with many images would
    end up in the largest part and the parts would not be exchangeable.
    """
    wanted = np.flatnonzero(shares > 0)
    total = sum(len(unit.rows) for unit in units)
    if len(units) < len(wanted):
        raise DataError(
            f"{total} images of {len(units)} patients (or clusters of copies) cannot be divided into {len(wanted)} parts: "
            "give images of more patients"
        )
    order = sorted(units, key=lambda unit: (-len(unit.rows) if 10 * len(unit.rows) > total else 0, _shuffled(unit.name, seed)))
    lacking = shares * total
    chosen: list[list[_Unit]] = [[] for _ in shares]
    for position, unit in enumerate(order):
        empty = [part for part in wanted if not chosen[part]]
        open_parts = empty if len(order) - position <= len(empty) else wanted
        part = max(open_parts, key=lambda p: lacking[p])
        chosen[part].append(unit)
        lacking[part] -= len(unit.rows)
    _even_out(chosen, lacking, [int(part) for part in wanted])
    return [np.sort(np.array([row for unit in part for row in unit.rows], dtype=np.int64)) for part in chosen]


def _shuffled(name: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogatepass")).hexdigest()


def _even_out(chosen: list[list[_Unit]], lacking: np.ndarray, wanted: list[int]) -> None:
    """Move single units, or swap two, from parts that are too large to parts that are too small, while it helps."""
    for _ in range(100):
        options = [
            (abs(lacking[a]) + abs(lacking[b]) - abs(lacking[a] + size) - abs(lacking[b] - size), a, b, given, taken)
            for a in wanted
            for b in wanted
            if lacking[a] < 0 < lacking[b]
            for given, taken, size in _exchanges(chosen[a], chosen[b])
        ]
        gain, a, b, given, taken = max(options, key=lambda option: option[0], default=(0.0, 0, 0, None, None))
        if gain < 1e-9 or given is None:
            return
        for unit, source, target in ((given, a, b), (taken, b, a)):
            if unit is not None:
                chosen[source].remove(unit)
                chosen[target].append(unit)
                lacking[source] += len(unit.rows)
                lacking[target] -= len(unit.rows)


def _exchanges(source: list[_Unit], target: list[_Unit]) -> list[tuple[_Unit, _Unit | None, int]]:
    """One unit given and one or none taken back, with the rows that change sides; one for each pair of sizes."""
    give = {len(unit.rows): unit for unit in source}
    take: dict[int, _Unit | None] = {len(unit.rows): unit for unit in target}
    if len(source) > 1:
        take[0] = None
    return [(unit, other, size - back) for size, unit in give.items() for back, other in take.items() if size > back]
