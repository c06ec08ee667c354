"""The images that an encoder is trained on, held in memory as bytes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from offmap.core.errors import ConfigError, DataError
from offmap.represent.train.procedural import draw

SIDE = 224
"""Side in pixels to which images are reduced (centre square, antialiased)."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
"""Kinds of file that are read."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Training and held-out images, ``(N, 3, 224, 224)``; grey ones have three equal channels."""

    train: UInt8[Tensor, "n 3 h w"]
    held_out: UInt8[Tensor, "m 3 h w"]
    skipped: int


def gather(data: Sequence[Path], *, procedural: int, held_out: float, seed: int, limit: int = 20_000) -> Pool:
    """Read folders and files, add drawn pictures, and set a part aside.

    Args:
        data: files, and folders that are walked in sorted order.
        procedural: number of pictures to draw.
        held_out: share set aside, in (0, 0.5]; at least one image.
        seed: of drawing and of splitting.
        limit: at most so many files, spread evenly over all.

    Raises:
        DataError: fewer than two images in all.
        ConfigError: a path does not exist.
    """
    rng = np.random.default_rng(seed)
    paths = list(_walk(data))
    paths = [paths[i] for i in np.linspace(0, len(paths) - 1, min(len(paths), limit)).astype(int)] if paths else []
    read = [_read(path) for path in paths]
    images = [image for image in read if image is not None]
    images += [_bytes(np.broadcast_to(p, (3, SIDE, SIDE))) for p in draw(procedural, SIDE, rng)]
    if len(images) < 2:
        raise DataError(f"{len(images)} images to train on (of {len(paths)} files): two are the least, thousands are meant")
    order = rng.permutation(len(images))
    aside = max(1, round(held_out * len(images)))
    stacked = torch.from_numpy(np.stack([images[i] for i in order]))
    return Pool(stacked[aside:], stacked[:aside], len(paths) - (len(images) - procedural))


def _walk(data: Sequence[Path]) -> Iterator[Path]:
    for path in data:
        if not path.exists():
            raise ConfigError(f"{path} does not exist")
        if path.is_dir():
            yield from (p for p in sorted(path.rglob("*")) if p.suffix.lower() in SUFFIXES and p.is_file())
        else:
            yield path


def _read(path: Path) -> UInt8[np.ndarray, "3 h w"] | None:
    """One image, or None where the file cannot be read; deeper than 8 bits is scaled by its 0.5 and 99.5 percentiles."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            picture = opened if opened.mode in ("L", "RGB", "I", "I;16", "F") else opened.convert("RGB")
            values = np.asarray(picture, dtype=np.float32)
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
        return None
    if picture.mode in ("I", "I;16", "F"):
        low, high = np.percentile(values, (0.5, 99.5))
        values = (values - low) / max(float(high - low), 1e-6) * 255
    planes = torch.from_numpy(np.atleast_3d(values)).permute(2, 0, 1)[None]
    side = min(planes.shape[2:])
    top, left = (planes.shape[2] - side) // 2, (planes.shape[3] - side) // 2
    square = planes[:, :, top : top + side, left : left + side]
    small = torch.nn.functional.interpolate(square, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
    return _bytes(np.broadcast_to(small[0].numpy() / 255, (3, SIDE, SIDE)))


def _bytes(values: np.ndarray) -> UInt8[np.ndarray, "3 h w"]:
    return np.asarray(np.clip(np.rint(values * 255), 0, 255), dtype=np.uint8)
