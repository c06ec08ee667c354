"""A benchmark suite: named sets of images, which of them are in distribution, which are near, and how each is divided."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from offmap.core.errors import ConfigError

Kind = Literal["near", "far"]
Rows = Int[np.ndarray, " _"]


@dataclass(frozen=True, slots=True)
class Division:
    """Rows of an in-distribution set for one seed; disjoint."""

    fit: Rows
    held_out: Rows
    test: Rows


@dataclass(frozen=True)
class Suite:
    """Sets of images and what is asked of them.

    Args:
        name: of the suite.
        folder: that paths are relative to.
        sets: folders of each set, by name.
        near: for each in-distribution set the sets that are near it; every other one is far, unless ignored.
        ignored: for each in-distribution set the sets that are not compared with it.
        max_id, max_other: images taken of an in-distribution set, and of it or another as the other side.
        shares: of fit, held-out and test part.
        seeds: one division of each in-distribution set a seed.
    """

    name: str
    folder: Path
    sets: Mapping[str, tuple[str, ...]]
    near: Mapping[str, tuple[str, ...]]
    ignored: Mapping[str, tuple[str, ...]]
    max_id: int
    max_other: int
    shares: tuple[float, float, float]
    seeds: tuple[int, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        """Names of the in-distribution sets."""
        return tuple(self.near)

    def files(self, name: str) -> list[Path]:
        """Files of a set: by path, in sorted order, the first ``max_id`` (in-distribution sets) or ``max_other``.

        Raises:
            ConfigError: an unknown set, or no file.
        """
        if name not in self.sets:
            raise ConfigError(f"suite {self.name} has no set {name!r}; it has {', '.join(self.sets)}")
        found = sorted(p for folder in self.sets[name] for p in (self.folder / folder).glob("*") if p.is_file() and p.name[0] != ".")
        if not found:
            raise ConfigError(f"set {name!r} of suite {self.name}: no files in {', '.join(self.sets[name])} below {self.folder}")
        return found[: self.max_id if name in self.near else self.max_other]

    def others(self, own: str) -> dict[str, Kind]:
        """The sets that are compared with an in-distribution set, and how."""
        return {
            name: "near" if name in self.near[own] else "far" for name in self.sets if name != own and name not in self.ignored.get(own, ())
        }

    def divide(self, count: int, seed: int) -> Division:
        """A random division of ``count`` images."""
        order = np.random.default_rng(seed).permutation(count)
        fit, held = round(self.shares[0] * count), round(self.shares[1] * count)
        return Division(order[:fit], order[fit : fit + held], order[fit + held :])


def read_suite(path: Path) -> Suite:
    """A suite from its TOML file; paths of images are relative to it.

    Raises:
        ConfigError: not readable, a table or key is missing, or a set is named that does not exist.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        return _suite(tables, path.parent)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"suite {path} cannot be read: {error}") from error
    except (KeyError, TypeError) as error:
        raise ConfigError(f"suite {path}: {error} is missing or of a wrong type") from error


def _suite(tables: Mapping[str, Any], folder: Path) -> Suite:
    sets = {s["name"]: tuple(s["paths"]) for s in tables["set"]}
    near = {i["set"]: tuple(i["near"]) for i in tables["id"]}
    ignored = {i["set"]: tuple(i.get("ignore", ())) for i in tables["id"]}
    for name in {*near, *(n for names in (*near.values(), *ignored.values()) for n in names)} - set(sets):
        raise ConfigError(f"suite {tables['name']} names the set {name!r}, which it does not describe")
    shares = tables["split"]
    return Suite(
        name=tables["name"],
        folder=folder,
        sets=sets,
        near=near,
        ignored=ignored,
        max_id=int(tables["max_id"]),
        max_other=int(tables["max_other"]),
        shares=(float(shares["fit"]), float(shares["held_out"]), float(shares["test"])),
        seeds=tuple(map(int, tables["seeds"])),
    )
