"""The images of a study: rows of a table or files of folders, which of them are in distribution, and which make each shift."""

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from offmap.benchmark.image_set import FOLDER, ImageSet, Item, find
from offmap.benchmark.study_file import Filter, ImageTable, Study, Task
from offmap.core.component import nearest
from offmap.core.errors import ConfigError
from offmap.core.types import Source
from offmap.read.dicom_header import group_key
from offmap.read.sources import printable

FEW = 20
"""Values of a column up to which it is looked at as a label that could be confounded."""

STRONG = 0.8
"""Cramer's V from which two labels are said to be confounded."""


@dataclass(frozen=True)
class Images:
    """Items of a study.

    Args:
        own: in distribution.
        shifts: of each shift that is no damage, by its name.
        columns: names of the table's columns, patients apart.
    """

    own: tuple[Item, ...]
    shifts: Mapping[str, tuple[Item, ...]]
    columns: tuple[str, ...]


def value(item: Item, column: str) -> str:
    """What the table says of an image; of a file in a folder the folder's name is the column ``folder``."""
    if column == FOLDER and FOLDER not in item.source.meta:
        return item.source.path.parent.name
    return item.source.meta.get(column, "")


def find_images(study: Study) -> Images:
    """All images of a study.

    Raises:
        ConfigError: no table, no such column, no image of a shift, a label that is missing, or a task of one class.
    """
    rows, columns = _rows(study)
    _known_columns(study, columns)
    own = _cut(_kept(rows, study.where), study.most, study.seeds[0])
    if not own:
        raise ConfigError(f"study {study.name}: no image is in distribution: none of {len(rows)} has {_words(study.where)}")
    names = {item.name for item in own}
    found = {}
    for shift in study.shifts:
        if shift.damage:
            continue
        here = f"shift {shift.name!r} of study {study.name}"
        if shift.paths:
            try:
                mine = find(ImageSet(shift.name, shift.paths), study.folder)
            except ConfigError as error:
                raise ConfigError(f"{here} has no images: {error}") from error
        else:
            mine = _kept(rows, shift.where)
            if not mine:
                raise ConfigError(f"{here} has no images: none of {len(rows)} has {_words(shift.where)}{_values(rows, shift.where)}")
        both = [item for item in mine if item.name in names]
        if both:
            raise ConfigError(f"{here}: {len(both)} of its {len(mine)} images are in distribution too; narrow 'where' of one of them")
        found[shift.name] = tuple(_cut(mine, shift.max or study.most_shift, study.seeds[0]))
    _check_files(study, [*own, *(item for mine in found.values() for item in mine)])
    for task in study.tasks:
        classes(task, own)
    return Images(tuple(own), found, tuple(columns))


def classes(task: Task, own: Sequence[Item]) -> tuple[str, ...]:
    """Classes of a task that is a column.

    Raises:
        ConfigError: an image has no label, there is one class only, or one of a single image.
    """
    if task.made:
        return ()
    labels = [task.label(value(item, task.column)) for item in own]
    bare = [item.name for item, label in zip(own, labels, strict=True) if not label]
    if bare:
        raise ConfigError(
            f"task {task.name!r}: the column {task.column!r} is empty for {len(bare)} of {len(own)} in-distribution images, {bare[0]} for "
            "example; fill it, or leave these images out with [id] where"
        )
    found = sorted(set(labels))
    if len(found) < 2:
        raise ConfigError(
            f"task {task.name!r}: the column {task.column!r} has one class only, {found[0]!r}, among the {len(own)} in-distribution "
            "images; two or more are needed: widen [id] where, or leave the task out"
        )
    rare = next((name for name in found if labels.count(name) < 6), None)
    if rare is not None:
        raise ConfigError(
            f"task {task.name!r}: its class {rare!r} has {labels.count(rare)} in-distribution images, 6 or more are needed to train and "
            "try it; join it to another with rename, or leave it out with [id] where"
        )
    return tuple(found)


def cramers_v(one: Sequence[str], other: Sequence[str]) -> float:
    """Cramer's V of two labels, in [0, 1]: 1 = each tells the other (where they have as many values); 0 where one has one value only.

    Source: Cramer, Mathematical Methods of Statistics, 1946, chapter 21.
    """
    rows, columns = (np.unique(np.asarray(names), return_inverse=True)[1] for names in (one, other))
    table: Float[np.ndarray, "r c"] = np.zeros((int(rows.max()) + 1, int(columns.max()) + 1))
    np.add.at(table, (rows, columns), 1)
    least = min(table.shape) - 1
    if least == 0:
        return 0.0
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    return float(np.sqrt(((table - expected) ** 2 / expected).sum() / (table.sum() * least)))


def _rows(study: Study) -> tuple[list[Item], list[str]]:
    asked = study.images
    if asked.table:
        return _table(asked, study)
    items = find(ImageSet(study.name, asked.paths, patient=study.patient), study.folder)
    columns = list(dict.fromkeys(key for item in items for key in item.source.meta))
    return items, columns if FOLDER in columns else [*columns, FOLDER]


def _table(asked: ImageTable, study: Study) -> tuple[list[Item], list[str]]:
    file = study.folder / asked.table
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = "is not there" if isinstance(error, FileNotFoundError) else "cannot be read as UTF-8 text"
        raise ConfigError(
            f"study {study.name}: the table {asked.table} {why} below {study.folder}; name the folder with --data DIR"
        ) from error
    head = text.partition("\n")[0]
    reader = csv.reader(text.splitlines(), delimiter=max(",;\t", key=head.count))
    columns = [name.strip() for name in next(reader, [])]
    if asked.path not in columns:
        raise ConfigError(
            f"the table {asked.table} has no column {asked.path!r}{nearest(asked.path, columns)}. It has: {', '.join(columns)}"
        )
    items = []
    for number, cells in enumerate(reader, 2):
        if not cells:
            continue
        if len(cells) != len(columns):
            raise ConfigError(f"line {number} of {asked.table} has {len(cells)} cells, its head {len(columns)}")
        meta = {name: cell.strip() for name, cell in zip(columns, cells, strict=True)}
        name = os.path.join(asked.folder, meta.pop(asked.path) + asked.suffix)
        patient = meta.pop(study.patient, "") if study.patient else ""
        items.append(Item(Source(study.folder / name, printable(name), meta=meta), patient=group_key(patient) if patient else ""))
    twice = len(items) - len({item.name for item in items})
    if not items or twice:
        raise ConfigError(f"the table {asked.table} names {f'{twice} images twice' if twice else 'no image'}")
    if study.patient and study.patient not in columns:
        raise ConfigError(
            f"the table {asked.table} has no column {study.patient!r}{nearest(study.patient, columns)} that tells patients apart"
        )
    return items, [name for name in columns if name not in (asked.path, study.patient)]


def _known_columns(study: Study, columns: Sequence[str]) -> None:
    asked = [(f"task {task.name!r}", task.column) for task in study.tasks if task.column]
    asked += [("[id] where", key) for key in study.where]
    asked += [(f"shift {shift.name!r}", key) for shift in study.shifts for key in shift.where]
    for who, column in asked:
        if column not in columns:
            what = study.images.table or ", ".join(study.images.paths)
            raise ConfigError(f"{who}: {what} has no column {column!r}{nearest(column, list(columns))}. It has: {', '.join(columns)}")


def _kept(rows: Sequence[Item], where: Filter) -> list[Item]:
    return [item for item in rows if all(value(item, key) in values for key, values in where.items())]


def _cut(items: Sequence[Item], most: int, seed: int) -> list[Item]:
    """Some of the images, drawn at random, in their order; of a table sorted by label the first ones would be of one kind."""
    if not most or len(items) <= most:
        return list(items)
    return [items[i] for i in np.sort(np.random.default_rng(seed).permutation(len(items))[:most])]


def _check_files(study: Study, items: Sequence[Item]) -> None:
    lost = [item for item in items if not _exists(item.source.path)]
    if len(lost) == len(items):
        raise ConfigError(
            f"study {study.name}: none of the {len(items)} images is below {study.folder}, {lost[0].name} for example; name the folder "
            "with --data DIR"
        )


def _exists(path: Path) -> bool:
    return os.path.lexists(path)


def _words(where: Filter) -> str:
    return " and ".join(f"{key} = {' or '.join(values)}" for key, values in where.items())


def _values(rows: Sequence[Item], where: Filter) -> str:
    """What the columns do hold, where they hold few values."""
    out = []
    for key in where:
        there = sorted({value(item, key) for item in rows})
        out += [f"; {key} is one of {', '.join(there)}"] if len(there) <= FEW else []
    return "".join(out)
