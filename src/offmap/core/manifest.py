"""The manifest of a gate: JSON with a format number, a checksum of its own, and a list of every file and tensor.

``{"format": 1, "offmap": "0.1.0", "checksum": ..., "files": {name: {"bytes", "sha256"}},
"stages": {name: {"method", "params", "tensors": {name: [dtype, *shape]}, ...}}, ...the caller's own}``
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from offmap.core.errors import BundleError, ConfigError

FORMAT = 1
"""Number of the layout that this version writes, and the highest that it reads."""

MANIFEST = "manifest.json"
LIMIT = 4 * 2**20
"""Bytes that a manifest may have."""

DTYPES: Mapping[str, tuple[str, int]] = {
    "float64": ("F64", 8),
    "float32": ("F32", 4),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "int64": ("I64", 8),
    "int32": ("I32", 4),
    "int16": ("I16", 2),
    "int8": ("I8", 1),
    "uint8": ("U8", 1),
    "bool": ("BOOL", 1),
}
"""Kinds of tensor that a gate may hold: name in torch to name in safetensors and bytes per element."""

_OWN = ("format", "offmap", "files", "checksum")
_WORD = r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}"
_STAGE = re.compile(_WORD)
_FILE = re.compile(rf"(?:{_WORD}/)?{_WORD}")
_MAX_COUNT = 10_000
_MAX_DIMENSION = 2**40


def file_of(stage: str) -> str:
    """Name of the file that holds a stage's tensors."""
    return f"{stage}.safetensors"


def build(
    manifest: Mapping[str, Any], tensors: Mapping[str, Mapping[str, list[str | int]]], files: Mapping[str, bytes], version: str
) -> bytes:
    """Bytes of a manifest; the same content gives the same bytes.

    Args:
        manifest: what the caller says, with ``stages``.
        tensors: ``[dtype, *shape]`` of each tensor of each stage.
        files: contents of all other files.
        version: of this package.

    Raises:
        ConfigError: not JSON, a name that is not allowed, or a stage that ``manifest`` does not describe.
    """
    stages = manifest.get("stages", {})
    unknown = sorted(set(tensors) - set(stages))
    if unknown or any(key in manifest for key in _OWN):
        raise ConfigError(f"a manifest must describe the stages {unknown} and must not hold {', '.join(_OWN)}")
    entries = {name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()}
    try:
        described = {name: {**entry, "tensors": dict(tensors.get(name, {}))} for name, entry in stages.items()}
        whole = {**manifest, "format": FORMAT, "offmap": version, "files": entries, "stages": described}
        text = _canonical({**whole, "checksum": hashlib.sha256(_canonical(whole)).hexdigest()})
        parse(text, "manifest", version)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"the manifest is not JSON: {error}") from error
    except BundleError as error:
        raise ConfigError(str(error)) from error
    return text


def parse(text: bytes, where: str, version: str) -> dict[str, Any]:
    """Manifest as JSON values, with every field that reading depends on checked.

    Args:
        text: content of the file.
        where: path of the file, for messages.
        version: of this package, for messages.

    Raises:
        BundleError: not JSON, of a newer format, changed after it was written, or of wrong form.
    """
    if len(text) > LIMIT:
        raise BundleError(f"{where} has {len(text)} bytes, more than the limit of {LIMIT}")
    manifest = strict_json(text, where)
    _check_format(manifest, where, version)
    rest = {key: value for key, value in manifest.items() if key != "checksum"}
    try:
        same = hashlib.sha256(_canonical(rest)).hexdigest() == manifest.get("checksum") and _canonical(manifest) == text
    except (TypeError, ValueError, RecursionError):
        same = False
    if not same:
        raise BundleError(f"{where} was changed after it was written: its checksum does not fit; copy the gate again or fit it anew")
    _check_form(manifest, where)
    return rest


def listed(path: Path) -> frozenset[str]:
    """Names of a gate's files as its manifest gives them, itself included; empty when it cannot be read."""
    try:
        with path.open("rb") as stream:
            manifest = strict_json(stream.read(LIMIT), str(path))
        return frozenset({MANIFEST, *manifest["files"]}) if {"format", "offmap", "stages"} <= set(manifest) else frozenset()
    except (OSError, BundleError, KeyError, TypeError):
        return frozenset()


def strict_json(text: bytes, where: str) -> dict[str, Any]:
    """A JSON object without doubled keys, NaN or infinity.

    Raises:
        BundleError: it is anything else.
    """
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where} is not valid JSON ({type(error).__name__}): it is damaged or no part of a gate") from error
    if not isinstance(value, dict):
        raise BundleError(f"{where} is not a JSON object: it is damaged or no part of a gate")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not allowed")


def _canonical(manifest: Mapping[str, Any]) -> bytes:
    return (json.dumps(manifest, sort_keys=True, indent=1, allow_nan=False) + "\n").encode("ascii")


def _check_format(manifest: Mapping[str, Any], where: str, version: str) -> None:
    number, writer = manifest.get("format"), manifest.get("offmap")
    if type(number) is not int or not isinstance(writer, str) or not re.fullmatch(r"[0-9A-Za-z.+-]{1,40}", writer):
        raise BundleError(f"{where} names no format and no version of offmap: this is no gate, or it is damaged")
    if number > FORMAT:
        raise BundleError(
            f"{where} is of format {number}, written by offmap {writer}; this is offmap {version}, which reads up to format {FORMAT}. "
            f"Upgrade offmap to {writer} or later"
        )
    if number < 1:
        raise BundleError(f"{where} is of format {number}; formats begin with 1: it is damaged")


def _check_form(manifest: Mapping[str, Any], where: str) -> None:
    stages: Any = manifest.get("stages")
    files: Any = manifest.get("files")
    _require(isinstance(stages, dict) and len(stages) <= _MAX_COUNT, where, "stages must be an object")
    _require(isinstance(files, dict) and len(files) <= _MAX_COUNT, where, "files must be an object")
    _check_names(stages, _STAGE, where, "stage")
    _check_names((*files, MANIFEST), _FILE, where, "file")
    for name, entry in stages.items():
        _check_stage(entry, where, f"stages.{name}")
    for name, entry in files.items():
        good = isinstance(entry, dict) and set(entry) == {"bytes", "sha256"} and _is_size(entry["bytes"])
        good = good and isinstance(entry["sha256"], str) and re.fullmatch(r"[0-9a-f]{64}", entry["sha256"]) is not None
        _require(good, where, f"files.{name} must hold bytes and sha256")
    needed = {file_of(name) for name, entry in stages.items() if entry["tensors"]}
    present = {name for name in files if name.endswith(".safetensors")}
    _require(needed == present, where, f"files of tensors differ from the stages': {', '.join(sorted(needed ^ present))}")


def _check_names(names: Iterable[str], pattern: re.Pattern[str], where: str, what: str) -> None:
    seen: set[str] = set()
    for name in names:
        _require(pattern.fullmatch(name) is not None and ".." not in name, where, f"the {what} name {name[:120]!r} is not allowed")
        _require(name.lower() not in seen, where, f"the {what} name {name!r} appears twice but for its case")
        seen.add(name.lower())


def _check_stage(entry: Any, where: str, path: str) -> None:
    _require(isinstance(entry, dict), where, f"{path} must be an object")
    _require(isinstance(entry.get("method"), str) and isinstance(entry.get("params"), dict), where, f"{path} must hold method and params")
    tensors = entry.get("tensors")
    _require(isinstance(tensors, dict) and len(tensors) <= _MAX_COUNT, where, f"{path}.tensors must be an object")
    for name, kind in tensors.items():
        good = isinstance(kind, list) and 1 <= len(kind) <= 9 and isinstance(kind[0], str) and kind[0] in DTYPES
        good = good and all(_is_size(length) for length in kind[1:]) and 0 < len(name) <= 300 and name != "__metadata__"
        _require(good, where, f"{path}.tensors.{name[:120]} must be a list of dtype and lengths")


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_DIMENSION


def _require(good: bool, where: str, what: str) -> None:
    if not good:
        raise BundleError(f"{where}: {what}; the gate is damaged or was not written by offmap")
