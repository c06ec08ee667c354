"""A gate on disk: ``manifest.json`` and one ``<stage>.safetensors`` each, written whole or not at all, read with suspicion.

Reading goes: sizes, SHA-256 of the manifest (when asked for), JSON, format number, checksum, schema, SHA-256 of each file,
safetensors header, names and dtypes and shapes as in the manifest, finite values. Nothing in a file chooses code to run.
The checksums guard against damage; ``expect`` guards against exchange.
"""

import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

import offmap
from offmap.core import manifest as schema
from offmap.core.errors import BundleError, ConfigError
from offmap.core.manifest import DTYPES, MANIFEST, file_of
from offmap.core.tensors import kind_of, parse

LIMIT = 4 * 2**30
"""Bytes that all files of a gate may have together."""

LITTER = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
"""Left in folders by file browsers."""

Stages = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Bundle:
    """A gate as read.

    Args:
        manifest: JSON values; the caller's own beside ``format``, ``offmap``, ``stages``, ``files``.
        stages: tensors of each stage, by name.
        id: ``sha256:`` and the SHA-256 of the manifest's bytes.
        folder: where it lies.
    """

    manifest: Mapping[str, Any]
    stages: Stages = field(repr=False)
    id: str
    folder: Path

    @property
    def extra(self) -> tuple[str, ...]:
        """Names of the files that hold no tensors (thumbnails of neighbours), sorted."""
        own = {file_of(stage) for stage in self.manifest["stages"]}
        return tuple(sorted(set(self.manifest["files"]) - own))

    def read_extra(self, name: str) -> bytes:
        """Content of one file of ``extra``, checked again.

        Raises:
            BundleError: no such file, or it was changed.
        """
        if name not in self.extra:
            raise BundleError(f"{self.folder} lists no file {name!r} beside its stages")
        return bytes(_content(self.folder, name, self.manifest["files"][name]))


def write(folder: Path, manifest: Mapping[str, Any], stages: Stages, *, extra: Mapping[str, bytes] | None = None) -> str:
    """Write a gate, whole or not at all; the same content gives the same bytes.

    Args:
        folder: where to; a gate that is there is replaced, anything else is not.
        manifest: JSON values, with ``stages``: name to ``{"method": ..., "params": {...}}`` and whatever else belongs to it.
            Dates are the caller's. ``format``, ``offmap``, ``files``, ``checksum`` and each stage's ``tensors`` are added here.
        stages: tensors of each stage; a stage without tensors may be left out and gets no file.
        extra: further files by name, ``name.png`` or ``folder/name.png``.

    Returns:
        The gate's id, ``sha256:...``.

    Raises:
        ConfigError: the folder holds something that is no gate, the manifest is not JSON, a name is not allowed, a tensor
            is not finite or of a kind that cannot be kept, or the disk refuses.
    """
    contents, text = _compose(manifest, stages, extra or {})
    try:
        target = folder.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        require_replaceable(target)
        with _beside(target) as work:
            new = work / "new"
            new.mkdir()
            for name, content in {**contents, MANIFEST: text}.items():
                _write_file(new / name, content)
            _sync_folders(new)
            _put_in_place(new, target, work / "old")
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"the gate {folder} cannot be written ({type(error).__name__}: {getattr(error, 'strerror', '')})") from error
    return _identity(text)


def identity(manifest: Mapping[str, Any], stages: Stages, *, extra: Mapping[str, bytes] | None = None) -> str:
    """The id that ``write`` would give, without writing."""
    return _identity(_compose(manifest, stages, extra or {})[1])


def read(folder: Path, *, expect: str | None = None) -> Bundle:
    """Read a gate, or refuse it before anything is run.

    Args:
        folder: the gate.
        expect: ``sha256:...`` that the gate's id must equal.

    Raises:
        BundleError: it is damaged, forged, foreign, too large, or of a newer format; the message names the file.
        ConfigError: ``expect`` is no SHA-256.
    """
    if expect is not None and not re.fullmatch(r"(sha256:)?[0-9a-f]{64}", expect):
        raise ConfigError(f"--expect {expect!r} must be sha256: and 64 hexadecimal digits, as `offmap inspect GATE` prints it")
    text = _manifest(folder)
    identity = _identity(text)
    if expect is not None and identity != f"sha256:{expect.removeprefix('sha256:')}":
        raise BundleError(
            f"{folder} is not the gate that was asked for: its id is {identity}, --expect says {expect}. Ask where it comes from"
        )
    manifest = schema.parse(text, str(folder / MANIFEST), offmap.__version__)
    files = manifest["files"]
    if sum(entry["bytes"] for entry in files.values()) > LIMIT:
        raise BundleError(f"{folder} lists more than {LIMIT} bytes, the limit of a gate: it is damaged or no gate of offmap")
    for name, entry in files.items():
        _open(folder, name, entry["bytes"]).close()
    own = {file_of(stage): stage for stage in manifest["stages"]}
    stages: dict[str, Mapping[str, Tensor]] = {stage: {} for stage in manifest["stages"]}
    for name, entry in files.items():
        content = _content(folder, name, entry)
        if name in own:
            stages[own[name]] = parse(content, manifest["stages"][own[name]]["tensors"], str(folder / name))
    return Bundle(manifest, stages, identity, folder)


def _compose(manifest: Mapping[str, Any], stages: Stages, extra: Mapping[str, bytes]) -> tuple[dict[str, bytes], bytes]:
    """Content of every file but the manifest, and the manifest."""
    encoded = {file_of(name): _encode(name, tensors) for name, tensors in sorted(stages.items()) if tensors}
    contents = encoded | dict(sorted(extra.items()))
    if len(contents) != len(encoded) + len(extra):
        raise ConfigError("a file of extra has the name of a stage's file")
    described = {name: _described(tensors) for name, tensors in stages.items()}
    return contents, schema.build(manifest, described, contents, offmap.__version__)


def _identity(text: bytes) -> str:
    return f"sha256:{hashlib.sha256(text).hexdigest()}"


def _described(tensors: Mapping[str, Tensor]) -> dict[str, list[str | int]]:
    return {name: kind_of(tensor) for name, tensor in sorted(tensors.items())}


def _encode(stage: str, tensors: Mapping[str, Tensor]) -> bytes:
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta or kind_of(tensor)[0] not in DTYPES:
            raise ConfigError(f"stage {stage!r}: tensor {name!r} ({tensor.dtype}, {tensor.layout}) is of a kind that a gate cannot keep")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ConfigError(f"stage {stage!r}: tensor {name!r} is not finite; are there at least two different images?")
    content: bytes = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(tensors.items())})
    return content


def _manifest(folder: Path) -> bytes:
    if not os.path.isdir(folder):
        raise BundleError(f"{folder} is no gate: there is no such folder. `offmap fit ... --out {folder}` makes one")
    with _open(folder, MANIFEST) as stream:
        text: bytes = stream.read(schema.LIMIT + 1)
    if len(text) > schema.LIMIT:
        raise BundleError(
            f"{folder / MANIFEST} is larger than {schema.LIMIT} bytes, the limit of a manifest: it is damaged or no gate of offmap"
        )
    return text


def _open(folder: Path, name: str, size: int | None = None) -> Any:
    """Open a regular file inside the folder, following no link, and check its size."""
    path = folder / name
    try:
        if any((folder / part).is_symlink() for part in [Path(name), *Path(name).parents][:-1]):
            raise BundleError(f"{path} is a symbolic link; a gate holds plain files only. Copy the gate with its files (cp -L)")
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        stream = os.fdopen(os.open(path, flags), "rb")
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}): the gate is incomplete or no gate; copy or fit it again") from error
    status = os.fstat(stream.fileno())
    if not stat.S_ISREG(status.st_mode) or (size is not None and status.st_size != size):
        stream.close()
        raise BundleError(f"{path} has {status.st_size} bytes, the manifest says {size}: it is truncated or changed; copy the gate again")
    return stream


def _content(folder: Path, name: str, entry: Mapping[str, Any]) -> bytearray:
    """Bytes of one file, read once, of the size and SHA-256 that the manifest states."""
    content = bytearray(entry["bytes"])
    with _open(folder, name, entry["bytes"]) as stream:
        count = stream.readinto(content)
    if count != len(content) or hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise BundleError(
            f"{folder / name} does not have the SHA-256 of the manifest: it was changed or damaged; copy the gate again or fit it anew"
        )
    return content


def require_replaceable(target: Path) -> None:
    """Refuse to replace anything but an empty folder or a gate without foreign files.

    Raises:
        ConfigError: there is a file, or a folder that holds something else.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise ConfigError(f"{target} is a file; give the name of a folder that does not exist yet, or of a gate to replace")
    entries = {path.relative_to(target).as_posix() for path in target.rglob("*") if not path.is_dir()}
    if not entries:
        return
    known = schema.listed(target / MANIFEST)
    foreign = sorted(entries - known - LITTER)
    if MANIFEST not in entries or foreign:
        what = f"it holds {foreign[0]!r}" if foreign else "it has no manifest"
        raise ConfigError(f"{target} exists and is not only a gate ({what}); it is left as it is. Give another folder")


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A hidden folder beside the target, gone afterwards whatever happens."""
    work = target.parent / f".{target.name[:100]}.{secrets.token_hex(4)}.tmp"
    work.mkdir()
    try:
        yield work
    finally:
        if not (work / "old").exists() or target.exists():
            shutil.rmtree(work, ignore_errors=True)


def _write_file(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folders(folder: Path) -> None:
    for path in (*(p for p in folder.iterdir() if p.is_dir()), folder):
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _put_in_place(new: Path, target: Path, old: Path) -> None:
    """Rename the finished folder; what was there comes back when that fails or is interrupted."""
    try:
        if target.exists():
            target.rename(old)
        new.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
