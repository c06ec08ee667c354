"""A benchmark suite: named sets of images, which are in distribution, which near, far or shifted, and how each is divided."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from offmap.benchmark import image_set
from offmap.benchmark.division import Copies, Division, divided
from offmap.benchmark.image_set import ImageSet, Item, sources_of
from offmap.benchmark.suite_file import place, read_tables, shipped
from offmap.core.component import nearest
from offmap.core.errors import ConfigError
from offmap.datasets import local
from offmap.simulate.corruptions import CORRUPTIONS

__all__ = [
    "Classifier",
    "Division",
    "ImageSet",
    "InDistribution",
    "Item",
    "Kind",
    "Suite",
    "read_suite",
    "shipped",
    "sources_of",
]

Kind = Literal["near", "far", "covariate", "corruption"]


@dataclass(frozen=True, slots=True)
class Classifier:
    """A classifier whose logits are scored.

    Args:
        network: as ``offmap.benchmark.checkpoint`` names it.
        weights: safetensors file, below the suite's folder.
        classes: number of outputs.
        size: pixels of its input, one number an axis.
        mean, std: what pixels in [0, 1] are standardised with, one number a channel; empty = not at all.
    """

    network: str
    weights: str
    classes: int
    size: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True)
class InDistribution:
    """One in-distribution set, and what is compared with it.

    Args:
        set: its name; with ``fit`` and ``test`` it stands for these sets together.
        near, far, covariate: sets of each kind; far None = every other set that is neither of these nor ignored.
        ignore: sets that are not compared with it.
        labels: whether its items have classes that a classifier can be trained on.
        fit, held_out, test: sets that make a fixed division; empty = a random division for each seed.
        classifier: a trained one, given by file.
    """

    set: str
    near: tuple[str, ...] = ()
    far: tuple[str, ...] | None = None
    covariate: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    labels: bool = False
    fit: str = ""
    held_out: str = ""
    test: str = ""
    classifier: Classifier | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """Sets that its images come from."""
        return tuple(name for name in (self.fit, self.held_out, self.test) if name) or (self.set,)


@dataclass(frozen=True)
class Suite:
    """Sets of images and what is asked of them.

    Args:
        name: of the suite.
        folder: that paths are relative to.
        sets: by name.
        ids: the in-distribution sets.
        max_id, max_other: images taken of an in-distribution set, and of any other; 0 = all.
        shares: of fit, held-out and test part of a random division.
        seeds: one division of each in-distribution set a seed.
        corruptions, severities: damage to the test images of each in-distribution set; each gives a set ``<id>~<corruption>@<severity>``.
        volumes: a DICOM series or a NIfTI file is one image.
        description: one sentence.
    """

    name: str
    folder: Path
    sets: Mapping[str, ImageSet]
    ids: tuple[InDistribution, ...]
    max_id: int
    max_other: int
    shares: tuple[float, float, float] = (0.5, 0.2, 0.3)
    seeds: tuple[int, ...] = (1,)
    corruptions: tuple[str, ...] = ()
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    volumes: bool = False
    description: str = ""
    _found: dict[str, list[Item]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def own(self) -> tuple[str, ...]:
        """Names of the in-distribution sets."""
        return tuple(each.set for each in self.ids)

    def in_distribution(self, name: str) -> InDistribution:
        """What the suite says of an in-distribution set.

        Raises:
            ConfigError: there is none of this name.
        """
        for each in self.ids:
            if each.set == name:
                return each
        raise ConfigError(f"suite {self.name} has no in-distribution set {name!r}{nearest(name, list(self.own))}")

    def items(self, name: str) -> list[Item]:
        """Images of a set in sorted order, or in that of its list, cut to its maximum.

        Images of a corruption are those of its in-distribution set: the test rows of a division are damaged.

        Raises:
            ConfigError: an unknown set, or one that has no images here.
        """
        made = self.corruption(name)
        if made is not None:
            return self.items(made[0])
        parts = next((each.parts for each in self.ids if each.set == name), (name,))
        if parts != (name,):
            return [item for part in parts for item in self.items(part)]
        if name not in self.sets:
            raise ConfigError(f"suite {self.name} has no set {name!r}{nearest(name, list(self.sets))}. It has: {', '.join(self.sets)}")
        if name not in self._found:
            own = {part for each in self.ids for part in each.parts}
            limit = self.max_id if name in own else self.max_other
            try:
                self._found[name] = image_set.find(self.sets[name], self.folder, limit=limit, volumes=self.volumes)
            except ConfigError as error:
                raise ConfigError(f"set {name!r} of suite {self.name}: {error}") from error
        return list(self._found[name])

    def classes(self, own: str) -> list[str]:
        """Names of the classes of an in-distribution set: numbers in their order, else sorted.

        Raises:
            ConfigError: an image has no class, or all have the same.
        """
        items = self.items(own)
        bare = [item.name for item in items if not item.label]
        if bare:
            raise ConfigError(f"set {own!r} of suite {self.name}: {len(bare)} of {len(items)} images have no class, {bare[0]} for example")
        found = {item.label for item in items}
        if len(found) < 2:
            raise ConfigError(f"set {own!r} of suite {self.name} has one class only, {min(found)!r}: two or more are needed")
        return sorted(found, key=int) if all(name.isdecimal() for name in found) else sorted(found)

    def files(self, name: str) -> list[Path]:
        """File of each image of a set, as ``items`` orders them.

        Raises:
            ConfigError: as ``items``.
        """
        return [item.source.path for item in self.items(name)]

    def absent(self, name: str) -> str:
        """Why a set has no images here; empty when it has.

        Raises:
            ConfigError: the suite does not describe this set.
        """
        made = self.corruption(name)
        known = {*self.sets, *self.own}
        if made is None and name not in known:
            raise ConfigError(f"suite {self.name} has no set {name!r}{nearest(name, sorted(known))}")
        try:
            self.items(name)
        except ConfigError as error:
            return str(error)
        return ""

    def corruption(self, name: str) -> tuple[str, str, int] | None:
        """In-distribution set, corruption and severity of a set that is made; None for sets of files."""
        own, mark, rest = name.partition("~")
        kind, _, severity = rest.partition("@")
        if not mark or own not in self.own or kind not in self.corruptions or severity not in map(str, self.severities):
            return None
        return own, kind, int(severity)

    def others(self, own: str) -> dict[str, Kind]:
        """The sets that are compared with an in-distribution set, in the order of the suite, and how; corruptions last."""
        asked = self.in_distribution(own)
        kinds: dict[str, Kind] = dict.fromkeys(asked.near, "near")
        kinds |= dict.fromkeys(asked.covariate, "covariate")
        left_out = {own, *asked.parts, *asked.ignore}
        far = asked.far if asked.far is not None else [n for n in self.sets if n not in left_out and n not in kinds]
        kinds |= dict.fromkeys(far, "far")
        found = {name: kinds[name] for name in self.sets if name in kinds}
        made: dict[str, Kind] = {f"{own}~{kind}@{severity}": "corruption" for kind in self.corruptions for severity in self.severities}
        return found | made

    def divide(self, items: Sequence[Item], seed: int, copies: Copies = ()) -> Division:
        """A random division; images of one patient, and copies of one another, stay in one part.

        Args:
            items: of an in-distribution set.
            seed: which division.
            copies: groups of rows, as ``core.duplicates.find`` gives them.

        Raises:
            DataError: too few images or patients for three parts.
        """
        return Division(*divided(items, self.shares, seed, copies))

    def split(self, own: str, seed: int, copies: Copies = (), items: Sequence[Item] = ()) -> Division:
        """The division of an in-distribution set: the fixed one of its suite, or a random one; rows of ``items(own)``.

        Without a held-out set a fixed division takes its share from the fit part.

        Args:
            own: the in-distribution set.
            seed: which division.
            copies: as ``divide``.
            items: ``items(own)``, where more is known of their patients.

        Raises:
            DataError: as ``divide``.
        """
        asked = self.in_distribution(own)
        known = items or self.items(own)
        if not asked.fit:
            return self.divide(known, seed, copies)
        sizes = [len(self.items(part)) for part in asked.parts]
        ends = np.cumsum(sizes)
        rows = [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        if asked.held_out:
            return Division(*rows)
        both = self.shares[0] + self.shares[1]
        within = [[row for row in group if row < sizes[0]] for group in copies]
        fit, held_out = divided(known[: sizes[0]], (self.shares[0] / both, self.shares[1] / both), seed, within)
        return Division(fit, held_out, rows[-1])


def read_suite(path_or_name: Path | str, root: Path | str | None = None) -> Suite:
    """A suite from its TOML file, or one that comes with offmap by its name.

    Args:
        path_or_name: file, or a name of ``shipped()``.
        root: folder that paths of images are relative to. Otherwise the file's own ``root``; otherwise the file's folder,
            for a shipped suite the local data (``$OFFMAP_DATA``) or the working folder.

    Raises:
        ConfigError: not readable, a key is missing, unknown or wrong, or a set is named that is not described.
    """
    path, comes_along = place(path_or_name)
    tables = read_tables(path)
    if root is not None:
        folder = Path(root)
    elif "root" in tables:
        folder = path.parent / os.path.expanduser(tables["root"])
    else:
        folder = (local.find() or Path()) if comes_along else path.parent
    return _suite(tables, folder, f"suite {path}")


def _suite(tables: Mapping[str, Any], folder: Path, where: str) -> Suite:
    sets = {given["name"]: _set(given, where) for given in tables["set"]}
    ids = tuple(_id(given) for given in tables["id"])
    for each, given in zip(ids, tables["id"], strict=True):
        sets |= _labelled(each, given.get("labels", False), sets, where)
    for name in (*sets, *(each.set for each in ids)):
        _nameable(name, where)
    seeds = tables.get("seeds", [1])
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"{where}: seeds = {seeds} names a division twice")
    _distinct([given["name"] for given in tables["set"]], f"{where}, [[set]]")
    _distinct([each.set for each in ids], f"{where}, [[id]]")
    for each in ids:
        _known(each, sets, where)
    asked = tables.get("corruptions", [])
    corruptions = tuple(CORRUPTIONS) if asked == "all" else (asked,) if isinstance(asked, str) else tuple(asked)
    for name in corruptions:
        if name not in CORRUPTIONS:
            raise ConfigError(
                f"{where}: there is no corruption {name!r}{nearest(name, list(CORRUPTIONS))}. There are: {', '.join(CORRUPTIONS)}"
            )
    severities = tuple(tables.get("severities", (1, 2, 3, 4, 5)))
    if not set(severities) <= {1, 2, 3, 4, 5}:
        raise ConfigError(f"{where}: severities = {list(severities)} must be among 1 to 5")
    shares = tables.get("split", {"fit": 0.5, "held_out": 0.2, "test": 0.3})
    return Suite(
        name=tables["name"],
        folder=folder,
        sets=sets,
        ids=ids,
        max_id=tables["max_id"],
        max_other=tables["max_other"],
        shares=(float(shares["fit"]), float(shares["held_out"]), float(shares["test"])),
        seeds=tuple(seeds),
        corruptions=corruptions,
        severities=severities,
        volumes=tables.get("volumes", False),
        description=tables.get("description", ""),
    )


def _set(given: Mapping[str, Any], where: str) -> ImageSet:
    name = given["name"]
    if bool(given.get("paths")) == bool(given.get("list")):
        raise ConfigError(f"{where}, [[set]] {name}: either 'paths' or 'list' must say where its images are")
    values = {key: value for key, value in given.items() if key not in ("paths", "where")}
    filters = {key: (value,) if isinstance(value, str) else tuple(value) for key, value in given.get("where", {}).items()}
    return ImageSet(paths=tuple(given.get("paths", ())), where=filters, **values)


def _id(given: Mapping[str, Any]) -> InDistribution:
    lists: dict[str, Any] = {key: tuple(given[key]) for key in ("near", "far", "covariate", "ignore") if key in given}
    texts = {key: given[key] for key in ("set", "fit", "held_out", "test") if key in given}
    table = given.get("classifier")
    classifier = None
    if table is not None:
        size = table.get("size", [])
        classifier = Classifier(
            network=table["network"],
            weights=table["weights"],
            classes=table["classes"],
            size=(size,) if isinstance(size, int) else tuple(size),
            mean=tuple(map(float, table.get("mean", ()))),
            std=tuple(map(float, table.get("std", ()))),
        )
    return InDistribution(**texts, **lists, labels=bool(given.get("labels", False)), classifier=classifier)


def _labelled(each: InDistribution, asked: bool | str, sets: Mapping[str, ImageSet], where: str) -> dict[str, ImageSet]:
    """Sets whose classes are learned: with the column that ``labels`` names, and refused without any."""
    own = {part: sets[part] for part in each.parts if part in sets}
    if isinstance(asked, str):
        return {name: replace(given, label=asked) for name, given in own.items()}
    bare = next((name for name, given in own.items() if not (given.label or given.list)), None)
    if asked and bare is not None:
        raise ConfigError(f"{where}, [[id]] {each.set}: labels = true, but the set {bare!r} has no 'label': a column, 'folder' or '=text'")
    return {}


def _nameable(name: str, where: str) -> None:
    """Refuse names that cannot be part of the name of a file, or mean something else."""
    if name in ("", ".", "..") or any(mark in name for mark in "~/\\\0"):
        raise ConfigError(f"{where}: a set is named {name!r}; a name is not empty, and has no '~' (which marks corruptions), '/' or '\\'")


def _distinct(names: Sequence[str], where: str) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"{where}: {twice!r} is there twice")


def _known(each: InDistribution, sets: Mapping[str, ImageSet], where: str) -> None:
    """Refuse names of sets that are not described, a set of two kinds, and half a fixed division."""
    if bool(each.fit) != bool(each.test) or (each.held_out and not each.fit):
        raise ConfigError(f"{where}, [[id]] {each.set}: a fixed division names the sets 'fit' and 'test', and 'held_out' if there is one")
    named = (*each.parts, *each.near, *(each.far or ()), *each.covariate, *each.ignore)
    for name in named:
        if name not in sets:
            raise ConfigError(f"{where}, [[id]] {each.set} names the set {name!r}, which it does not describe{nearest(name, list(sets))}")
    twice = next((name for name in named if named.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"{where}, [[id]] {each.set}: the set {twice!r} is there as two things")
