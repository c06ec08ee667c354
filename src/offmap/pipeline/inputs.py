"""What a user hands in: paths, folders, globs, manifests, or arrays."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from offmap.core.errors import ConfigError, DataError
from offmap.core.types import Frame, Image, Source
from offmap.read.sources import Found, find

PathLike = str | Path


def is_array(given: Any) -> bool:
    """Whether this is a numpy array or a torch tensor."""
    return isinstance(given, np.ndarray) or type(given).__module__.partition(".")[0] == "torch"


def paths(given: PathLike | Sequence[PathLike], *, volumes: bool) -> Found:
    """Sources of paths, folders, globs, manifests and ``FILE.npz::key``.

    Raises:
        ConfigError: a path does not exist, or a manifest is malformed.
    """
    return find([given] if isinstance(given, str | Path) else list(given), volumes=volumes)


def sources(given: PathLike | Sequence[PathLike], *, volumes: bool) -> tuple[Source, ...]:
    """What is to be scored.

    Raises:
        ConfigError: as ``paths``.
        DataError: the paths name no image.
    """
    found = paths(given, volumes=volumes)
    if not found.sources:
        raise DataError(f"there is nothing to score: {found.skipped} files were skipped, no other was found. See `offmap check`")
    return found.sources


def images(array: Any, *, axes: str, spacing: Sequence[float] | None = None, shuffle: int | None = None) -> Iterator[Image]:
    """Images of an array.

    Args:
        array: numpy array or torch tensor of numbers.
        axes: one letter an axis: ``N`` items (may be absent), ``C`` channels (1 or 3), ``D H W`` space; ``"NHW"``, ``"NCHW"``, ``"NDHW"``.
        spacing: mm per pixel of the spatial axes, in their order in ``D H W``.
        shuffle: seed of a random order; as they come when None.

    Raises:
        ConfigError: axes that do not fit the array, or channels other than 1 or 3.
    """
    data = np.asarray(array.detach().cpu().numpy() if hasattr(array, "detach") else array)
    letters = axes.upper()
    if len(letters) != data.ndim or len(set(letters)) != len(letters) or not {"H", "W"} <= set(letters) <= set("NCDHW"):
        raise ConfigError(f"axes = {axes!r} does not describe an array of shape {data.shape}: one letter of N, C, D, H, W an axis")
    if data.dtype.kind not in "buif":
        raise ConfigError(f"an array of {data.dtype} is no image; numbers expected")
    data = data.transpose([letters.index(a) for a in "NCDHW" if a in letters])
    if "N" not in letters:
        data = data[None]
    if "C" not in letters:
        data = data[:, None]
    if data.shape[1] not in (1, 3):
        raise ConfigError(f"axes = {axes!r} gives {data.shape[1]} channels; 1 or 3 expected")
    mm = tuple(float(s) for s in spacing) if spacing is not None else None
    if mm is not None and (len(mm) != data.ndim - 2 or min(mm) <= 0):
        raise ConfigError(f"spacing = {mm} must hold {data.ndim - 2} positive numbers")
    order = range(len(data)) if shuffle is None else np.random.default_rng(shuffle).permutation(len(data)).tolist()
    for i in order:
        yield _image(data[i], i, mm)


def _image(pixels: np.ndarray, i: int, spacing: tuple[float, ...] | None) -> Image:
    kept = np.ascontiguousarray(pixels.astype(np.uint8) if pixels.dtype == np.bool_ else pixels)
    digest = hashlib.sha256(str((kept.shape, kept.dtype.str, spacing)).encode() + kept.tobytes()).hexdigest()
    return Image(
        pixels=kept,
        item=f"array[{i}]",
        frame=Frame.whole(kept.shape[1:]),
        spacing=spacing,
        bits=kept.dtype.itemsize * 8,
        digest=digest,
    )
