"""A suite's TOML file: which keys there are, of which type; everything else is refused with the nearest name."""

import tomllib
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from offmap.core.component import nearest
from offmap.core.errors import ConfigError

Table = Mapping[str, Any]
Check = Callable[[Any], bool]

TEXT, WHOLE, TRUTH, TEXTS, WHOLES, SHARES, FILTER, TABLE, TABLES, NUMBERS, WORD_OR_TEXTS, TRUTH_OR_TEXT, SIZE, NUMBER = (
    "a text",
    "a whole number, 0 or more",
    "true or false",
    "a list of texts",
    "a list of whole numbers",
    "a table { fit, held_out, test } of numbers above 0 with sum 1",
    "a table of columns, each with a text or a list of texts",
    "a table",
    "an array of tables, written [[NAME]]",
    "a list of numbers",
    "a text or a list of texts",
    "true, false or a text",
    "a whole number or a list of them",
    "a number",
)

SUITE = {
    "name": TEXT,
    "description": TEXT,
    "root": TEXT,
    "max_id": WHOLE,
    "max_other": WHOLE,
    "split": SHARES,
    "seeds": WHOLES,
    "volumes": TRUTH,
    "corruptions": WORD_OR_TEXTS,
    "severities": WHOLES,
    "set": TABLES,
    "id": TABLES,
}
SET = {
    "name": TEXT,
    "paths": TEXTS,
    "list": TEXT,
    "list_root": TEXT,
    "where": FILTER,
    "label": TEXT,
    "patient": TEXT,
    "maximum": WHOLE,
}
ID = {
    "set": TEXT,
    "near": TEXTS,
    "far": TEXTS,
    "covariate": TEXTS,
    "ignore": TEXTS,
    "labels": TRUTH_OR_TEXT,
    "fit": TEXT,
    "held_out": TEXT,
    "test": TEXT,
    "classifier": TABLE,
}
CLASSIFIER = {"network": TEXT, "weights": TEXT, "classes": WHOLE, "size": SIZE, "mean": NUMBERS, "std": NUMBERS}
NEEDED = {
    "suite": ("name", "max_id", "max_other", "set", "id"),
    "set": ("name",),
    "id": ("set",),
    "classifier": ("network", "weights", "classes"),
}


def read_tables(path: Path) -> Table:
    """The checked tables of a suite file.

    Raises:
        ConfigError: not readable, a key that is missing, unknown or of a wrong type.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"suite {path} cannot be read: {error}") from error
    where = f"suite {path}"
    check_keys(tables, SUITE, NEEDED["suite"], where)
    for given in tables["set"]:
        check_keys(given, SET, NEEDED["set"], f"{where}, [[set]] {given.get('name', '')}")
    for given in tables["id"]:
        check_keys(given, ID, NEEDED["id"], f"{where}, [[id]] {given.get('set', '')}")
        if "classifier" in given:
            check_keys(given["classifier"], CLASSIFIER, NEEDED["classifier"], f"{where}, [id.classifier] of {given['set']}")
    return tables


def shipped() -> dict[str, str]:
    """Names of the suites that come with offmap, and what each is."""
    files = sorted((f for f in _folder().iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return {f.name.removesuffix(".toml"): tomllib.loads(f.read_text(encoding="utf-8")).get("description", "") for f in files}


def place(given: Path | str) -> tuple[Path, bool]:
    """The file of a suite, and whether it is one that comes with offmap.

    Raises:
        ConfigError: neither a file nor the name of a suite.
    """
    if Path(given).suffix == ".toml" or Path(given).is_file():
        return Path(given), False
    names = list(shipped())
    if str(given) not in names:
        hint = nearest(str(given), names)
        raise ConfigError(f"there is no suite {str(given)!r}{hint}. Name a .toml file, or one of: {', '.join(names)}")
    return Path(str(_folder() / f"{given}.toml")), True


def _folder() -> Any:
    return resources.files("offmap.benchmark") / "suites"


def check_keys(given: Table, known: Mapping[str, str], needed: tuple[str, ...], where: str) -> None:
    """Refuse a table with a key that is unknown, missing or of a wrong type.

    Args:
        known: kind of each key's value.
        needed: keys that must be there.
        where: the table, for messages.

    Raises:
        ConfigError: naming the key, with the nearest one.
    """
    for key, value in given.items():
        if key not in known:
            raise ConfigError(f"{where} has an unknown key {key!r}{nearest(key, list(known))}. It may have: {', '.join(known)}")
        if not _fits(value, known[key]):
            raise ConfigError(f"{where}: {key} = {value!r} must be {known[key]}")
    lacking = [key for key in needed if key not in given]
    if lacking:
        raise ConfigError(f"{where}: the key {lacking[0]!r} is missing")


def _fits(value: Any, kind: str) -> bool:
    checks: dict[str, Check] = {
        TEXT: _text,
        WHOLE: _whole,
        TRUTH: lambda v: isinstance(v, bool),
        TEXTS: lambda v: _all(v, _text),
        WHOLES: lambda v: _all(v, _whole) and bool(v),
        SHARES: _shares,
        FILTER: lambda v: isinstance(v, dict) and all(_text(one) or (_all(one, _text) and bool(one)) for one in v.values()),
        TABLE: lambda v: isinstance(v, dict),
        TABLES: lambda v: _all(v, lambda one: isinstance(one, dict)) and bool(v),
        NUMBERS: lambda v: _all(v, _number) and bool(v),
        WORD_OR_TEXTS: lambda v: _text(v) or _all(v, _text),
        TRUTH_OR_TEXT: lambda v: isinstance(v, bool) or _text(v),
        SIZE: lambda v: _whole(v) or (_all(v, _whole) and bool(v)),
        NUMBER: _number,
    }
    return checks[kind](value)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _all(value: Any, check: Check) -> bool:
    return isinstance(value, list) and all(check(one) for one in value)


def _shares(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"fit", "held_out", "test"}:
        return False
    return all(_number(v) and v > 0 for v in value.values()) and abs(sum(value.values()) - 1) < 1e-6
