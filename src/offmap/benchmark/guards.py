"""What makes a benchmark say less than it seems: copies across sets, and files that are told apart whatever they show."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int

from offmap.benchmark.file_statistics import NUMBERS, FileStatistics, file_statistics
from offmap.benchmark.metrics import auroc
from offmap.core import duplicates
from offmap.core.errors import ConfigError

__all__ = ["BASELINE", "Copies", "FileStatistics", "Overlap", "Prints", "ToldApart", "file_statistics", "find_copies", "told_apart"]

BASELINE = "intensity"
"""The detector that is a row of every table: what it separates, brightness and contrast separate."""

LISTED = 5
"""Pairs of files that a sentence names."""

THRESHOLD = 0.8
"""AUROC from which files are said to be told apart."""

SMALLEST = 20
"""Images that a set needs before anything is said: of fewer, an AUROC of 0.8 is often chance."""

FOLDS = 5

Rows = Int[np.ndarray, " _"]
_Asked = Callable[[str, int], bool]
_Build = Callable[[int], Any]

ALONE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "image size": ("width", "height"),
        "aspect ratio": ("aspect",),
        "number of slices": ("depth",),
        "file format": ("format",),
        "coding": ("coding",),
        "bit depth": ("bits",),
        "colour channels": ("channels",),
        "JPEG quality": ("jpeg_quality",),
        "JPEG chroma subsampling": ("jpeg_subsampling",),
        "file size": ("bytes",),
        "bytes per pixel": ("bytes_per_pixel",),
    }
)
"""Statistics that are tried alone, and their columns; of equals the first is named."""

CONTENT = frozenset({"file size", "bytes per pixel", "colour channels"})
"""Statistics that also follow from what an image shows: a smooth image compresses better."""


@dataclass(frozen=True, slots=True, eq=False)
class Prints:
    """What copies of one set are found by.

    Args:
        items: names of the items.
        prints: one ``core.duplicates.fingerprint`` an item.
        digests: SHA-256 of each image; may be empty.
    """

    items: tuple[str, ...]
    prints: Float[np.ndarray, "n d"]
    digests: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Overlap:
    """Images of one set that are copies of images of an in-distribution set.

    Args:
        own: the in-distribution set.
        other: the set that loses images; ``own`` itself where its test part does.
        rows: of ``other``, those to leave out, sorted.
        count: images of ``other`` (of its test part) before that.
        pairs: for each of ``rows`` its name, and the name of one image that it is a copy of.
    """

    own: str
    other: str
    rows: Rows
    count: int
    pairs: tuple[tuple[str, str], ...]

    @property
    def sentence(self) -> str:
        """For people, with the names of files; empty where there is no copy."""
        if not len(self.rows):
            return ""
        shown = ", ".join(f"{left} = {right}" for left, right in self.pairs[:LISTED])
        more = f" and {len(self.pairs) - LISTED} more" if len(self.pairs) > LISTED else ""
        part = f'test images of "{self.own}"' if self.other == self.own else f'images of "{self.other}"'
        whom = "images that were fitted on" if self.other == self.own else f'images of "{self.own}"'
        verb = "looks like a copy" if len(self.rows) == 1 else "look like copies"
        return f"{len(self.rows)} of {self.count} {part} {verb} of {whom}; left out: {shown}{more}"


@dataclass(frozen=True, slots=True, eq=False)
class Copies:
    """Groups of copies among all sets of a suite; a group is of ``(set, row)``.

    Args:
        items: names of the items of each set.
        groups: two or more places each.
    """

    items: Mapping[str, tuple[str, ...]]
    groups: tuple[tuple[tuple[str, int], ...], ...]

    def within(self, name: str) -> list[tuple[int, ...]]:
        """Groups of rows of one set that are copies of one another, for ``Suite.split``."""
        found = [tuple(row for owner, row in group if owner == name) for group in self.groups]
        return [rows for rows in found if len(rows) > 1]

    def shared(self, own: str, other: str, rows: Sequence[int] | Rows | None = None) -> Overlap:
        """Images of another set that are copies of images of an in-distribution set.

        Args:
            own: the in-distribution set.
            other: the set that is compared with it.
            rows: those of ``own`` that count; all when None, since a copy of a test image is no OOD image either.
        """
        known = None if rows is None else {int(row) for row in rows}
        found = self._found(lambda owner, row: owner == own and (known is None or row in known), lambda owner, _: owner == other)
        return Overlap(own, other, np.array(list(found), dtype=np.int64), len(self.items[other]), self._pairs(other, own, found))

    def tested_twice(self, own: str, fitted: Sequence[int] | Rows, test: Sequence[int] | Rows) -> Overlap:
        """Test images that are copies of images of the fit and held-out part; only a fixed division has any."""
        known, asked = {int(row) for row in fitted}, {int(row) for row in test}
        found = self._found(lambda owner, row: owner == own and row in known, lambda owner, row: owner == own and row in asked)
        return Overlap(own, own, np.array(list(found), dtype=np.int64), len(asked), self._pairs(own, own, found))

    def _found(self, is_known: _Asked, is_asked: _Asked) -> dict[int, int]:
        """Rows that are asked for, sorted, each with the first known row that it is a copy of."""
        found: dict[int, int] = {}
        for group in self.groups:
            known = [row for owner, row in group if is_known(owner, row)]
            if known:
                found |= {row: known[0] for owner, row in group if is_asked(owner, row)}
        return dict(sorted(found.items()))

    def _pairs(self, other: str, own: str, found: Mapping[int, int]) -> tuple[tuple[str, str], ...]:
        return tuple((self.items[other][row], self.items[own][known]) for row, known in found.items())


def find_copies(sets: Mapping[str, Prints], *, threshold: float = duplicates.THRESHOLD) -> Copies:
    """Copies within and across sets: saved again, resized, flipped, or equal by digest.

    Args:
        sets: fingerprints of each set, by name.
        threshold: as ``core.duplicates.find``. Images of 28 pixels hold little: some that only look alike reach it.

    Raises:
        ConfigError: names and fingerprints do not match.
    """
    for name, given in sets.items():
        if len(given.items) != len(given.prints) or len(given.digests) not in (0, len(given.items)):
            raise ConfigError(f"set {name!r}: {len(given.items)} names, {len(given.prints)} fingerprints, {len(given.digests)} digests")
    places = [(name, row) for name, given in sets.items() for row in range(len(given.items))]
    items = {name: given.items for name, given in sets.items()}
    if not places:
        return Copies(items, ())
    prints = np.concatenate([given.prints for given in sets.values() if len(given.prints)])
    digests = [digest for given in sets.values() for digest in given.digests or ("",) * len(given.items)]
    groups = duplicates.find(prints, digests, threshold=threshold)
    return Copies(items, tuple(tuple(places[row] for row in group) for group in groups))


@dataclass(frozen=True, slots=True)
class ToldApart:
    """How well file statistics alone separate two sets.

    Args:
        own, other: names of the sets.
        auroc: of a small classifier on all statistics, mean over folds; NaN where a set is too small.
        alone: AUROC of each single statistic that differs, best first.
        sizes: images of each set.
    """

    own: str
    other: str
    auroc: float
    alone: Mapping[str, float]
    sizes: tuple[int, int]

    @property
    def best(self) -> str:
        """The statistic that separates best, one that does not follow from what images show before all others where it reaches
        ``THRESHOLD``; empty where none was tried."""
        plain = (name for name, value in self.alone.items() if name not in CONTENT and value >= THRESHOLD)
        return next(plain, next(iter(self.alone), ""))

    @property
    def warns(self) -> bool:
        """Whether one statistic, or all together, reach ``THRESHOLD``."""
        return max(self.auroc if math.isfinite(self.auroc) else 0.0, self.alone.get(self.best, 0.0)) >= THRESHOLD

    @property
    def sentence(self) -> str:
        """For people; empty where there is nothing to warn of."""
        if min(self.sizes) < SMALLEST:
            few = self.own if self.sizes[0] <= self.sizes[1] else self.other
            count = f"{min(self.sizes)} image{'' if min(self.sizes) == 1 else 's'}"
            return f'"{few}" has {count}: too few to say whether "{self.other}" is told apart from "{self.own}" by its files'
        if not self.warns:
            return ""
        said = f'"{self.other}" is told apart from "{self.own}" by'
        value = self.alone.get(self.best, 0.0)
        note = ", which also follows from what an image shows" if self.best in CONTENT else ""
        if value >= THRESHOLD:
            return f"{said} {self.best} alone (AUROC {value:.2f}){note}"
        return f"{said} file statistics together (AUROC {self.auroc:.2f}), most of all {self.best} ({value:.2f}{note})"


def told_apart(own: FileStatistics, other: FileStatistics) -> ToldApart:
    """Cross-validated AUROC of small classifiers that see only file statistics; images of one patient stay in one fold.

    All statistics together go to shallow gradient boosting, each alone to a tree of depth 3, so that a statistic also counts when
    the values of one set lie between those of the other.
    """
    sizes = (len(own.items), len(other.items))
    if min(sizes) < SMALLEST:
        return ToldApart(own.name, other.name, math.nan, {}, sizes)
    columns = _columns(own, other)
    folds = _folds(own, other)
    if len(folds) < 2:
        return ToldApart(own.name, other.name, math.nan, {}, sizes)
    target = np.arange(sum(sizes)) >= sizes[0]
    alone = {}
    for statistic, names in ALONE.items():
        found = [columns[name] for name in names if name in columns]
        if found:
            alone[statistic] = _separation(np.column_stack(found), target, folds, _tree)
    ordered = dict(sorted(alone.items(), key=lambda pair: -round(pair[1], 3)))
    together = _separation(np.column_stack(list(columns.values())), target, folds, _boosting) if columns else 0.5
    return ToldApart(own.name, other.name, together, ordered, sizes)


def _columns(own: FileStatistics, other: FileStatistics) -> dict[str, Float64[np.ndarray, " n"]]:
    """Columns that are not the same everywhere; what a format does not have is -1, words are numbered.

    A grey JPEG has no chroma, and gets the subsampling of the first colour one: that it is grey is a column of its own.
    """
    found: dict[str, np.ndarray] = {}
    for name in NUMBERS:
        values = np.concatenate([own.column(name), other.column(name)])
        missing = values[np.isfinite(values)][:1] if name == "jpeg_subsampling" else np.array([-1.0])
        found[name] = np.where(np.isnan(values), missing if len(missing) else -1.0, values)
    for name in own.texts:
        words = [*own.texts[name], *other.texts[name]]
        found[name] = np.unique(words, return_inverse=True)[1].astype(np.float64)
    return {name: values for name, values in found.items() if np.ptp(values) > 0}


def _folds(own: FileStatistics, other: FileStatistics) -> list[tuple[Rows, Rows]]:
    """Train and test rows of each fold, those with both sets on both sides."""
    from sklearn.model_selection import StratifiedGroupKFold

    target = np.arange(len(own.items) + len(other.items)) >= len(own.items)
    groups = np.unique([*own.groups, *other.groups], return_inverse=True)[1]
    if len(np.unique(groups)) < FOLDS:
        return []
    made = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(np.zeros((len(target), 1)), target, groups)
    return [(train, test) for train, test in made if all(0 < target[rows].sum() < len(rows) for rows in (train, test))]


def _separation(values: np.ndarray, target: np.ndarray, folds: Sequence[tuple[Rows, Rows]], build: _Build) -> float:
    from threadpoolctl import threadpool_limits

    found = []
    with threadpool_limits(1):  # these fits take milliseconds; threads that wait for each other take far longer on a busy machine
        for train, test in folds:
            scores = build(len(train)).fit(values[train], target[train]).predict_proba(values[test])[:, 1]
            found.append(auroc(scores[~target[test]], scores[target[test]]))
    return float(np.mean(found))


def _tree(count: int) -> Any:
    from sklearn.tree import DecisionTreeClassifier

    made: Any = DecisionTreeClassifier(max_depth=3, min_samples_leaf=max(3, count // 50), random_state=0)
    return made


def _boosting(count: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    made: Any = HistGradientBoostingClassifier(
        max_iter=40, max_depth=3, min_samples_leaf=max(3, count // 50), early_stopping=False, random_state=0
    )
    return made
