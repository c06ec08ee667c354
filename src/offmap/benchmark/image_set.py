"""One set of images of a suite: where its images are, of which class and of which patient, without decoding any."""

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from offmap.core.component import nearest
from offmap.core.errors import ConfigError, ReadError
from offmap.core.types import Source
from offmap.datasets.catalogue import entry
from offmap.datasets.fetch import cache_folder
from offmap.read import npz, sources
from offmap.read.dicom_header import group_key
from offmap.read.limits import DEFAULT

DATA = "data:"
"""``data:breastmnist::train_images``: an array of a set that ``offmap data get`` fetches."""

FOLDER = "folder"
"""As ``label`` or ``patient``: the name of the folder that the file lies in."""


@dataclass(frozen=True)
class ImageSet:
    """What a suite says of one set.

    Args:
        name: of the set.
        paths: files, folders, globs, ``.csv`` with a column ``path``, ``FILE.npz::key``, ``data:NAME::key``.
        list: a text file with ``path label`` a line, instead of ``paths``.
        list_root: the folder that the paths of ``list`` are relative to.
        where: columns (of a ``.csv``) or arrays (of an ``.npz``) and the values that they may have; other rows are left out.
        label: column or array with the class; ``folder``; or ``=text`` for one class. Empty: unknown, or what ``list`` says.
        patient: column or array that tells patients apart, or ``folder``.
        maximum: images taken, the first ones; 0 = what the suite says.
    """

    name: str
    paths: tuple[str, ...] = ()
    list: str = ""
    list_root: str = ""
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    label: str = ""
    patient: str = ""
    maximum: int = 0

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns or arrays that are read."""
        asked = [*self.where, *(key for key in (self.label, self.patient) if key and key != FOLDER and key[0] != "=")]
        return tuple(dict.fromkeys(asked))


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a set.

    Args:
        source: the file, series or array that holds it.
        label: its class; empty where unknown.
        patient: equal for images of one patient (a digest); empty where unknown.
        part: which image of the source, as the score table writes it (``[17]`` of an array); empty = all that the file holds.
    """

    source: Source
    label: str = ""
    patient: str = ""
    part: str = ""

    @property
    def name(self) -> str:
        """As ``Image.item`` of the image that reading gives."""
        return self.source.item + self.part


def sources_of(items: Sequence[Item]) -> list[Source]:
    """What has to be read for these items, each file or array once, in the order of the items.

    Reading an array gives all its images; those that are wanted have the ``name`` of an item.
    """
    return list({(item.source.path, item.source.key, item.source.members): item.source for item in items}.values())


def find(asked: ImageSet, folder: Path, *, limit: int = 0, volumes: bool = False) -> list[Item]:
    """Images of a set: folders and globs by path in sorted order, lists, tables and arrays in their own order.

    Args:
        asked: the set.
        folder: that its paths are relative to.
        limit: images taken where the set does not say; 0 = all.
        volumes: a DICOM series or a NIfTI file is one image.

    Raises:
        ConfigError: nothing there, no image left, or a column that is not there; a sentence for people.
    """
    rows = list(_listed(asked, folder, volumes) if asked.list else _named(asked, folder, volumes))
    if not rows:
        raise ConfigError(f"{_where(asked)} names no image below {folder}")
    kept = [row for row in rows if all(_value(asked, row, key) in values for key, values in asked.where.items())]
    if not kept:
        wanted = ", ".join(f"{key} = {' or '.join(values)}" for key, values in asked.where.items())
        raise ConfigError(f"none of the {len(rows)} images of {_where(asked)} has {wanted}")
    most = asked.maximum or limit
    items = [_item(asked, row, folder) for row in (kept[:most] if most else kept)]
    if not any(os.path.lexists(path) for item in items for path in item.source.members or (item.source.path,)):
        raise ConfigError(f"none of the {len(items)} files that {_where(asked)} names exists below {folder}")
    return items


@dataclass(frozen=True, slots=True)
class _Row:
    """An image with what its table, list or archive says of it."""

    source: Source
    values: Mapping[str, str]
    label: str = ""
    part: str = ""


def _where(asked: ImageSet) -> str:
    return asked.list or ", ".join(asked.paths)


def _named(asked: ImageSet, folder: Path, volumes: bool) -> Iterator[_Row]:
    found = [(text, _sources(text, folder, volumes)) for text in asked.paths]
    ordered = any(_lists(text) for text in asked.paths)
    flat = [source for _, given in found for source in given]
    for source in flat if ordered else sorted(flat, key=lambda s: s.path):
        if source.key:
            yield from _array(asked, source)
        else:
            yield _Row(source, source.meta)


def _lists(text: str) -> bool:
    """Whether what is named has an order of its own."""
    return text.lower().endswith(".csv") or "::" in text or text.lower().endswith(".npz")


def _sources(text: str, folder: Path, volumes: bool) -> Sequence[Source]:
    path = _downloaded(text, folder) if text.startswith(DATA) else os.path.join(folder, os.path.expanduser(text))
    file = path.rpartition("::")[0] or path
    if not os.path.lexists(path) and not os.path.lexists(file) and not glob.has_magic(path):
        raise ConfigError(f"no files in {text} below {folder}")
    found = sources.find([path], volumes=volumes).sources
    if not found:
        raise ConfigError(f"no files in {text} below {folder}")
    return found


def _downloaded(text: str, folder: Path) -> str:
    """The file of ``data:NAME::key``: below the suite's folder, else where ``offmap data get`` puts it."""
    name, mark, key = text.removeprefix(DATA).partition("::")
    file = entry(name).file
    places = (folder / "medmnist" / file, folder / file, cache_folder() / file)
    there = next((place for place in places if place.is_file()), None)
    if there is None:
        raise ConfigError(f"{file} is not there; fetch it with: offmap data get {name}")
    return f"{there}{mark}{key}"


def _array(asked: ImageSet, source: Source) -> Iterator[_Row]:
    """One row an image of an array; other arrays of the file are its columns."""
    try:
        with open(source.path, "rb") as file:
            parts = [part.suffix for part in npz.parts(file, key=source.key, volume=source.volume, limits=DEFAULT)]
    except (OSError, ReadError) as error:
        raise ConfigError(f"{source.item} cannot be read: {error}") from error
    columns = {key: _column(source, key, len(parts)) for key in asked.columns}
    for row, part in enumerate(parts):
        yield _Row(source, {key: str(values[row]) for key, values in columns.items()}, part=part)


def _column(source: Source, key: str, count: int) -> np.ndarray:
    try:
        with np.load(source.path, allow_pickle=False) as archive:
            if key not in archive:
                raise ConfigError(
                    f"{source.path.name} has no array {key!r}{nearest(key, archive.files)}. It has: {', '.join(archive.files)}"
                )
            values: np.ndarray = archive[key]
    except (OSError, ValueError) as error:
        raise ConfigError(f"the array {key!r} of {source.path.name} cannot be read: {error}") from error
    if values.size != count:
        raise ConfigError(f"the array {key!r} of {source.path.name} has {values.size} values for {count} images")
    return values.reshape(-1)


def _listed(asked: ImageSet, folder: Path, volumes: bool) -> Iterator[_Row]:
    """Rows of a list as OpenOOD has them: the path, a space, the class as a whole number (-1 = unknown)."""
    file, base = folder / asked.list, folder / asked.list_root
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise ConfigError(f"there is no list {asked.list} below {folder}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the list {asked.list} cannot be read: {error}") from error
    if not any(line.strip() for line in lines):
        raise ConfigError(f"the list {asked.list} below {folder} is empty")
    if not base.is_dir():
        raise ConfigError(f"there is no folder {asked.list_root} below {folder}, where the images of {asked.list} should be")
    for line in lines:
        if not line.strip():
            continue
        path, _, label = line.strip().rpartition(" ")
        if not path or not label.lstrip("-").isdecimal():
            path, label = line.strip(), ""
        source = Source(base / path, "", volume=volumes)
        yield _Row(source, {}, label="" if label.startswith("-") else label)


def _value(asked: ImageSet, row: _Row, key: str) -> str:
    if key not in row.values:
        known = list(row.values)
        what = f"It has: {', '.join(known)}" if known else "Folders and lists have no columns; '=text' is a class for all"
        raise ConfigError(f"set {asked.name!r}: {_where(asked)} has no column {key!r}{nearest(key, known)}. {what}")
    return row.values[key]


def _item(asked: ImageSet, row: _Row, folder: Path) -> Item:
    around = row.source.path.parent.name
    label = asked.label
    if label == FOLDER:
        label = around
    elif label.startswith("="):
        label = label[1:]
    else:
        label = _value(asked, row, label) if label else row.label
    patient = around if asked.patient == FOLDER else _value(asked, row, asked.patient) if asked.patient else ""
    meta = {key: value for key, value in row.source.meta.items() if key != asked.patient}
    source = replace(row.source, item=_short(row.source, folder), meta=meta)
    return Item(source, label, group_key(patient) if patient else "", row.part)


def _short(source: Source, folder: Path) -> str:
    """Name of a source: its path below the suite's folder where it lies there."""
    path, above = str(source.path), os.path.join(folder, "")
    path = path[len(above) :] if path.startswith(above) else path
    return sources.printable(f"{path}::{source.key}" if source.key else path)
