"""A study's TOML file: tasks, methods and shifts on one set of images; everything else is refused with the nearest name."""

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from offmap.benchmark.suite_file import (
    FILTER,
    NUMBER,
    SHARES,
    TABLE,
    TABLES,
    TEXT,
    TEXTS,
    TRUTH,
    WHOLE,
    WHOLES,
    Table,
    check_keys,
)
from offmap.core.component import nearest
from offmap.core.errors import ConfigError
from offmap.datasets import local
from offmap.represent.task_head import HeadPlan
from offmap.represent.viewed import made
from offmap.simulate.corruptions import CORRUPTIONS

ShiftKind = Literal["image_characteristics", "semantic"]
KINDS: tuple[str, ...] = get_args(ShiftKind)
Filter = Mapping[str, tuple[str, ...]]

METHODS = (
    *("msp", "entropy", "mc_dropout_entropy", "mc_dropout_mutual_information", "ensemble_entropy"),
    *("test_time_augmentation", "energy", "mahalanobis", "laplace_mutual_information"),
)
"""Methods of a study that names none."""

IMAGES = {"table": TEXT, "path": TEXT, "folder": TEXT, "suffix": TEXT, "paths": TEXTS}
STUDY = {
    "name": TEXT,
    "description": TEXT,
    "root": TEXT,
    "patient": TEXT,
    "max": WHOLE,
    "max_shift": WHOLE,
    "split": SHARES,
    "seeds": WHOLES,
    "methods": TEXTS,
    "semantic_ood_is_failure": TRUTH,
    "risk": NUMBER,
    "repeats": WHOLE,
    "hidden": WHOLE,
    "dropout": NUMBER,
    "steps": WHOLE,
    "passes": WHOLE,
    "members": WHOLE,
    "images": TABLE,
    "id": TABLE,
    "task": TABLES,
    "shift": TABLES,
}
ID = {"where": FILTER, "max": WHOLE}
TASK = {"name": TEXT, "column": TEXT, "made": TEXT, "clinical": TRUTH, "flips": TRUTH, "rename": TABLE}
SHIFT = {"name": TEXT, "kind": TEXT, "where": FILTER, "paths": TEXTS, "truth": TEXT, "damage": TEXT, "severity": WHOLE, "max": WHOLE}
NEEDED = {"study": ("name", "images", "task", "shift"), "task": ("name",), "shift": ("name", "kind")}


@dataclass(frozen=True)
class ImageTable:
    """Where the images of a study are named.

    Args:
        table: a CSV file (comma, semicolon or tab) with a row an image.
        path: its column with the file.
        folder, suffix: what stands before and behind the name in that column.
        paths: files, folders and globs, instead of a table.
    """

    table: str = ""
    path: str = "path"
    folder: str = ""
    suffix: str = ""
    paths: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """A question that one network answers of every image.

    Args:
        name: of the task.
        column: of the table with the label, or ``folder``; empty where ``made`` says how labels are made.
        made: ``laterality flip``, ``crop position`` or ``rotation``.
        clinical: the task whose wrong answers count as failures.
        flips: an image and its mirror image have the same label.
        rename: values of the column that stand for a class of another name.
    """

    name: str
    column: str = ""
    made: str = ""
    clinical: bool = False
    flips: bool = True
    rename: Mapping[str, str] = field(default_factory=dict)

    def label(self, value: str) -> str:
        """The class that a value of the column stands for."""
        return self.rename.get(value, value)


@dataclass(frozen=True)
class Shift:
    """Images that the networks were not trained on.

    Args:
        name: of the shift.
        kind: ``image_characteristics`` (the same taken in another way) or ``semantic`` (something else is shown).
        where: columns and values that choose its images from the table.
        paths: files, folders and globs, instead of ``where``.
        truth: clinical class of all of them, where no column says it.
        damage, severity: corruption of the in-distribution test images, 1 to 5, instead of other images.
        max: images taken; 0 = as the study says.
    """

    name: str
    kind: ShiftKind
    where: Filter = field(default_factory=dict)
    paths: tuple[str, ...] = ()
    truth: str = ""
    damage: str = ""
    severity: int = 3
    max: int = 0


@dataclass(frozen=True)
class Study:
    """Tasks, methods and shifts on one set of images.

    Args:
        name, description: of the study.
        folder: that paths are relative to.
        images: where images are named.
        patient: column that tells patients apart; empty where unknown.
        where, most: which rows are in distribution, and how many of them are taken (0 = all).
        most_shift: images taken of each shift; 0 = all.
        shares: of training, held-out and test part.
        seeds: one division, and one network for each task, a seed.
        methods: of uncertainty.
        semantic_ood_is_failure: an image of a semantic shift is a failure whatever the answer; otherwise only where it is wrong.
        risk: share of failures among accepted images at which the coverage is told.
        repeats: bootstrap samples.
        plan: of the networks.
        passes, members: passes with dropout, networks of an ensemble.
    """

    name: str
    folder: Path
    images: ImageTable
    tasks: tuple[Task, ...]
    shifts: tuple[Shift, ...]
    description: str = ""
    patient: str = ""
    where: Filter = field(default_factory=dict)
    most: int = 0
    most_shift: int = 0
    shares: tuple[float, float, float] = (0.5, 0.2, 0.3)
    seeds: tuple[int, ...] = (1,)
    methods: tuple[str, ...] = METHODS
    semantic_ood_is_failure: bool = True
    risk: float = 0.1
    repeats: int = 500
    plan: HeadPlan = field(default_factory=HeadPlan)
    passes: int = 30
    members: int = 5

    @property
    def clinical(self) -> Task:
        """The task whose wrong answers count as failures."""
        return next(task for task in self.tasks if task.clinical)


def shipped() -> dict[str, str]:
    """Names of the studies that come with offmap, and what each is."""
    files = sorted((f for f in _folder().iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return {f.name.removesuffix(".toml"): tomllib.loads(f.read_text(encoding="utf-8")).get("description", "") for f in files}


def read_study(path_or_name: Path | str, root: Path | str | None = None) -> Study:
    """A study from its TOML file, or one that comes with offmap by its name.

    Args:
        root: folder that paths are relative to. Otherwise the file's own ``root``; otherwise the file's folder, for a shipped study the
            local data (``$OFFMAP_DATA``) or the working folder.

    Raises:
        ConfigError: not readable, a key is missing, unknown or wrong, the folder is not there, or tasks and shifts make no sense.
    """
    path, comes_along = _place(path_or_name)
    where = f"study {path_or_name}"
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{where} cannot be read: {error}") from error
    check_keys(tables, STUDY, NEEDED["study"], where)
    check_keys(tables["images"], IMAGES, (), f"{where}, [images]")
    check_keys(tables.get("id", {}), ID, (), f"{where}, [id]")
    if root is not None:
        folder = Path(root)
    elif "root" in tables:
        folder = path.parent / os.path.expanduser(tables["root"])
    else:
        folder = (local.find() or Path()) if comes_along else path.parent
    if not folder.is_dir():
        raise ConfigError(
            f"{where}: the folder of the images {str(folder)!r} is not there; name it with --data DIR, or with root in the file"
        )
    return _study(tables, folder, where)


def _study(tables: Table, folder: Path, where: str) -> Study:
    given = tables["images"]
    images = ImageTable(**{key: value for key, value in given.items() if key != "paths"}, paths=tuple(given.get("paths", ())))
    if bool(images.table) == bool(images.paths):
        raise ConfigError(f"{where}, [images]: either 'table' or 'paths' must say where the images are")
    own, split = tables.get("id", {}), tables.get("split", {"fit": 0.5, "held_out": 0.2, "test": 0.3})
    plain = {key: tables[key] for key in ("name", "description", "patient", "semantic_ood_is_failure", "repeats") if key in tables}
    plain |= {key: int(tables[key]) for key in ("passes", "members") if key in tables}
    study = Study(
        **plain,
        folder=folder,
        images=images,
        tasks=tuple(_task(given, where) for given in tables["task"]),
        shifts=tuple(_shift(given, where) for given in tables["shift"]),
        where=_filter(own),
        most=own.get("max", tables.get("max", 0)),
        most_shift=tables.get("max_shift", 0),
        shares=(float(split["fit"]), float(split["held_out"]), float(split["test"])),
        seeds=tuple(tables.get("seeds", [1])),
        methods=tuple(tables.get("methods", METHODS)),
        risk=float(tables.get("risk", 0.1)),
        plan=HeadPlan(**{key: tables[key] for key in ("hidden", "dropout", "steps") if key in tables}),
    )
    _check(study, where)
    return study


def _task(given: Table, where: str) -> Task:
    here = f"{where}, [[task]] {given.get('name', '')}"
    check_keys(given, TASK, NEEDED["task"], here)
    if bool(given.get("column")) == bool(given.get("made")):
        raise ConfigError(f"{here}: either 'column' or 'made' must say what is asked")
    if any(not isinstance(value, str) for value in given.get("rename", {}).values()):
        raise ConfigError(f"{here}: rename must give a text for each value")
    if given.get("made"):
        made(given["made"], 64)
        if given.get("flips"):
            raise ConfigError(
                f"{here}: flips = true is not valid for {given['made']!r}, as a flip changes its label; leave the key out, and "
                "test-time augmentation goes without the mirrored view"
            )
        if given.get("clinical"):
            raise ConfigError(f"{here}: a task made from the images themselves cannot be the clinical one")
    flips = given.get("flips", not given.get("made"))
    return Task(**{**given, "flips": flips})


def _shift(given: Table, where: str) -> Shift:
    here = f"{where}, [[shift]] {given.get('name', '')}"
    check_keys(given, SHIFT, NEEDED["shift"], here)
    kind, damage = given["kind"], given.get("damage", "")
    if kind not in KINDS:
        raise ConfigError(f"{here}: kind = {kind!r}{nearest(kind, list(KINDS))} must be one of {', '.join(KINDS)}")
    if sum(bool(given.get(key)) for key in ("where", "paths", "damage")) != 1:
        raise ConfigError(f"{here}: one of 'where', 'paths' and 'damage' must say which images it has")
    if damage and damage not in CORRUPTIONS:
        raise ConfigError(f"{here}: there is no damage {damage!r}{nearest(damage, list(CORRUPTIONS))}. There are: {', '.join(CORRUPTIONS)}")
    if damage and (kind != "image_characteristics" or not 1 <= given.get("severity", 3) <= 5):
        raise ConfigError(f"{here}: damage is a shift of kind image_characteristics, with a severity from 1 to 5")
    rest = {key: value for key, value in given.items() if key not in ("where", "paths")}
    return Shift(**rest, where=_filter(given), paths=tuple(given.get("paths", ())))


def _filter(given: Table) -> Filter:
    return {key: (value,) if isinstance(value, str) else tuple(value) for key, value in given.get("where", {}).items()}


def _check(study: Study, where: str) -> None:
    for what, names in (("task", [t.name for t in study.tasks]), ("shift", [s.name for s in study.shifts])):
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"{where}: there are two [[{what}]] of the name {twice!r}")
    clinical = [task.name for task in study.tasks if task.clinical]
    if len(clinical) != 1:
        raise ConfigError(f"{where}: one task must have clinical = true, {len(clinical)} have: {', '.join(clinical) or 'none'}")
    if not 0 < study.risk < 1 or study.repeats < 100 or not 2 <= study.members <= 100 or not 2 <= study.passes <= 1000:
        raise ConfigError(
            f"{where}: risk = {study.risk} must lie in (0, 1), repeats = {study.repeats} be 100 or more, members = {study.members} "
            f"2 to 100, passes = {study.passes} 2 to 1000"
        )
    if len(set(study.seeds)) < len(study.seeds) or len(set(study.methods)) < len(study.methods) or not study.methods:
        raise ConfigError(f"{where}: seeds = {list(study.seeds)} and methods = {list(study.methods)} may name each once, and one at least")


def _place(given: Path | str) -> tuple[Path, bool]:
    if Path(given).suffix == ".toml" or Path(given).is_file():
        return Path(given), False
    names: Sequence[str] = list(shipped())
    if str(given) not in names:
        hint = nearest(str(given), list(names))
        raise ConfigError(f"there is no study {str(given)!r}{hint}. Name a .toml file, or one of: {', '.join(names)}")
    return Path(str(_folder() / f"{given}.toml")), True


def _folder() -> Any:
    return resources.files("offmap.benchmark") / "studies"
