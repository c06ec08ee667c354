"""From what the user names (files, folders, globs, manifests, arrays) to the list of things to read."""

import csv
import glob
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from offmap.core.component import nearest
from offmap.core.errors import ConfigError, ReadError
from offmap.core.types import Source
from offmap.read import grouping, npz

SIDECARS = frozenset({".txt", ".json", ".csv", ".md"})
"""Suffixes of files that lie beside images in a folder and are no images; a ``DICOMDIR`` is one too."""

_DEEPEST = 100


@dataclass(frozen=True, slots=True)
class Found:
    """What there is to read.

    Args:
        sources: in the order of the inputs, folders in sorted order; a file named twice is there twice.
        skipped: files beside images that are none (``DICOMDIR``, ``.txt``, ``.json``, ``.csv``, ``.md``).
    """

    sources: tuple[Source, ...]
    skipped: int


@dataclass
class _Search:
    """One call of ``find`` while it runs."""

    volumes: bool
    skipped: int = 0
    in_manifest: bool = False

    def source(self, path: str, *, key: str = "") -> Source:
        item = printable(f"{path}::{key}" if key else path)
        return Source(Path(path), item, key=key, volume=self.volumes)

    def input(self, text: str, base: str = "") -> list[Source]:
        """Sources of one input or one row of a manifest; ``base`` is the folder of the manifest."""
        path = os.path.join(base, text)
        name = _Named(text, path)
        if os.path.lexists(path):
            return name.on(self.path(path))
        file, mark, key = path.rpartition("::")
        if mark and os.path.lexists(file):
            return name.on([self.array(file, key)])
        if not base and glob.has_magic(text):
            return self.matches(text)
        if base:
            return [replace(self.source(path), item=printable(text))]
        raise ConfigError(f"{printable(text)!r}: no such file or folder")

    def path(self, path: str) -> list[Source]:
        """A file or folder that exists (or a link to nothing)."""
        if os.path.isdir(path):
            return self.folder(path)
        suffix = os.path.splitext(path)[1].lower()
        if suffix == ".csv" and not self.in_manifest:
            return self.manifest(path)
        return [self.only_array(path)] if suffix == ".npz" else [self.source(path)]

    def matches(self, pattern: str) -> list[Source]:
        found = sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise ConfigError(f"{printable(pattern)!r}: no file matches")
        if pattern.lower().endswith(".csv"):
            return [source for path in found for source in self.path(path)]
        folders = set() if "**" in pattern else {path for path in found if os.path.isdir(path)}
        sources: list[Source] = []
        for path in found:
            if path in folders:
                sources += self.walk(path, frozenset(), 0)
            elif not os.path.isdir(path):
                sources += self.file_beside_images(path)
        return grouping.into_series(sources) if self.volumes else sources

    def file_beside_images(self, path: str) -> list[Source]:
        name = os.path.basename(path)
        if name == "DICOMDIR" or os.path.splitext(name)[1].lower() in SIDECARS:
            self.skipped += 1
            return []
        return [self.source(path)]

    def folder(self, path: str) -> list[Source]:
        found = list(self.walk(path, frozenset(), 0))
        return grouping.into_series(found) if self.volumes else found

    def walk(self, folder: str, above: frozenset[tuple[int, int]], depth: int) -> Iterator[Source]:
        """Every regular file that is not hidden; what cannot be entered becomes a source, so that it gets a row."""
        try:
            info = os.stat(folder)
            identity = (info.st_dev, info.st_ino)
            if identity in above or depth > _DEEPEST:
                yield self.source(folder)
                return
            with os.scandir(folder) as entries:
                inside = sorted(entries, key=lambda e: e.name)
        except OSError:
            yield self.source(folder)
            return
        for entry in inside:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                yield from self.walk(entry.path, above | {identity}, depth + 1)
            elif _is_item(entry):
                yield from self.file_beside_images(entry.path)

    def array(self, file: str, key: str) -> Source:
        names = _array_names(file)
        if names is not None and key not in names:
            raise ConfigError(f"{printable(file)} has no array {key!r}{nearest(key, list(names))}. It has: {', '.join(names) or 'none'}")
        return self.source(file, key=key)

    def only_array(self, file: str) -> Source:
        names = _array_names(file)
        if names is None or not names:
            return self.source(file)
        if len(names) > 1:
            name = printable(file)
            raise ConfigError(f"{name} has several arrays; name one as {name}::{names[0]}. It has: {', '.join(names)}")
        return self.source(file, key=names[0])

    def manifest(self, path: str) -> list[Source]:
        """The rows of a CSV file with a ``path`` column."""
        found: list[Source] = []
        for number, row in _rows(path):
            text = row.pop("path")
            if not text:
                raise ConfigError(f"{printable(path)}, line {number}: the path is empty")
            self.in_manifest = True
            found += [replace(source, meta=row) for source in self.input(text, os.path.dirname(path) or ".")]
            self.in_manifest = False
        return found


@dataclass(frozen=True)
class _Named:
    """Gives sources the name that the manifest gave, not the joined path."""

    text: str
    path: str

    def on(self, sources: list[Source]) -> list[Source]:
        if self.text == self.path:
            return sources
        cut, name = len(printable(self.path)), printable(self.text)
        return [replace(s, item=name + s.item[cut:]) if s.item.startswith(printable(self.path)) else s for s in sources]


def find(inputs: Sequence[str | os.PathLike[str]], *, volumes: bool = False) -> Found:
    """List what the inputs name, without decoding anything.

    Args:
        inputs: files, folders (walked in sorted order), globs, ``.csv`` manifests with a ``path`` column,
            ``FILE.npz::key``. A name that exists is taken literally, even with ``*`` or ``[`` in it.
        volumes: a DICOM series (the files of one folder with one SeriesInstanceUID) or a NIfTI file is one source.

    Raises:
        ConfigError: an input does not exist, a glob matches nothing, a manifest has no ``path`` column or is not
            UTF-8, or an ``.npz`` holds several arrays and none is named.
    """
    search = _Search(volumes)
    sources = [source for text in inputs for source in search.input(os.fspath(text))]
    return Found(tuple(sources), search.skipped)


def printable(path: str) -> str:
    """A path as text that can be written as UTF-8; bytes that are none become ``\\xNN``."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_item(entry: os.DirEntry[str]) -> bool:
    """Regular files, and links that lead nowhere or to themselves; no sockets, pipes or devices."""
    try:
        mode = entry.stat().st_mode
    except OSError:
        return True
    return stat.S_ISREG(mode)


def _array_names(file: str) -> tuple[str, ...] | None:
    """Names of the arrays, or None where the file cannot be read (reading will say why)."""
    try:
        with open(file, "rb") as opened:
            return npz.keys(opened)
    except (OSError, ReadError):
        return None


def _rows(path: str) -> Iterator[tuple[int, dict[str, str]]]:
    name = printable(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restkey="")
            columns = list(reader.fieldnames or [])
            if "path" not in columns:
                raise ConfigError(f"{name} has no column 'path'{nearest('path', columns)}. It has: {', '.join(columns) or 'none'}")
            for row in reader:
                if "" in row and "" not in columns:
                    raise ConfigError(f"{name}, line {reader.line_num}: more fields than columns; quote a path that holds a comma")
                yield reader.line_num, {key: value or "" for key, value in row.items() if key}
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not UTF-8; save it as 'CSV UTF-8'") from error
    except csv.Error as error:
        raise ConfigError(f"{name} is no CSV file: {error}") from error
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}") from error
