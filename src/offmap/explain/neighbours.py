"""The nearest in-distribution images of an image, in feature space, with thumbnails where they were asked for.

Distance: one minus the cosine of standardised features, in [0, 2].
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image as Pillow
from torch import Tensor

from offmap.core.bundle import Bundle
from offmap.core.errors import BundleError, ConfigError, SignalError
from offmap.core.neighbours import k_nearest

SIDE = 96
"""Longer side of a thumbnail in pixels."""

MOST = 2_000
"""In-distribution images that are kept; of more, a random choice."""

FOLDER = "neighbours"
_LARGEST_FILE = 64 * 1024
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, eq=False)
class Neighbours:
    """In-distribution features to look into, and small pictures of the images they came from.

    Args:
        mean, spread: of each feature on the images kept.
        bank: standardised features of length 1.
        rows: which row of the fit each came from.
        pictures: PNG files in the order of ``bank``; empty when none were asked for. They show patients.
    """

    mean: Float[Tensor, " d"] = field(repr=False)
    spread: Float[Tensor, " d"] = field(repr=False)
    bank: Float[Tensor, "n d"] = field(repr=False)
    rows: Int64[Tensor, " n"] = field(repr=False)
    pictures: tuple[bytes, ...] = field(default=(), repr=False)

    @classmethod
    def fit(
        cls,
        features: Float[Tensor, "n d"],
        pictures: Sequence[np.ndarray] = (),
        *,
        most: int = MOST,
        side: int = SIDE,
        generator: torch.Generator | None = None,
    ) -> "Neighbours":
        """Keep features, and thumbnails of pictures.

        Args:
            features: of the last layer, one row an in-distribution image.
            pictures: uint8 ``(H, W)`` or ``(H, W, 3)``, one an image, or none at all.
            most: images to keep, in [1, 5000].
            side: longer side of a thumbnail, in [64, 96].
            generator: chooses among more than ``most`` images; a fresh one with seed 0 if not given.

        Raises:
            SignalError: no feature, or not finite.
            ConfigError: the number of pictures differs, or an argument is out of range.
        """
        if len(pictures) not in (0, len(features)) or not 1 <= most <= 5000 or not 64 <= side <= 96:
            raise ConfigError(
                f"{len(pictures)} pictures for {len(features)} images, most = {most}, side = {side}: "
                "one picture each or none, most in 1..5000, side in 64..96 expected"
            )
        values = _finite(features)
        if len(values) == 0:
            raise SignalError("there are no in-distribution features to keep as neighbours")
        rng = generator if generator is not None else torch.Generator().manual_seed(0)
        rows = torch.randperm(len(values), generator=rng)[:most].sort().values
        kept = values[rows]
        mean, spread = kept.mean(dim=0), kept.std(dim=0, correction=0)
        spread = torch.where(spread > 0, spread, 1.0)
        chosen = tuple(thumbnail(pictures[row], side) for row in rows.tolist()) if pictures else ()
        return cls(mean.float(), spread.float(), _unit((kept - mean.float()) / spread.float()), rows, chosen)

    def nearest(self, features: Float[Tensor, "m d"], *, k: int = 3) -> tuple[Int64[Tensor, "m k"], Float[Tensor, "m k"]]:
        """Positions in the bank and distances, the nearest first.

        Args:
            features: of the same layer as at ``fit``.
            k: neighbours of each; fewer where fewer are kept.

        Raises:
            SignalError: not finite, or of another width.
        """
        values = _finite(features)
        if values.shape[1] != self.bank.shape[1]:
            raise SignalError(f"features of shape {tuple(features.shape)} must have {self.bank.shape[1]} columns, as the neighbours have")
        query = _unit((values - self.mean.cpu()) / self.spread.cpu())
        distance, index = k_nearest(query, self.bank.cpu(), min(k, len(self.bank)))
        return index, distance.square() / 2

    def picture(self, position: int) -> UInt8[np.ndarray, "h w *c"] | None:
        """Thumbnail of one neighbour, ``(H, W)`` or ``(H, W, 3)``; None where none were kept.

        Raises:
            BundleError: it is no PNG of a thumbnail's size.
        """
        return decode(self.pictures[position], name_of(position)) if self.pictures else None

    def state(self) -> dict[str, Tensor]:
        """Tensors for the gate."""
        return {"mean": self.mean, "spread": self.spread, "bank": self.bank, "rows": self.rows}

    def files(self) -> dict[str, bytes]:
        """Thumbnails for the gate, by file name."""
        return {name_of(position): picture for position, picture in enumerate(self.pictures)}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], pictures: Sequence[bytes] = ()) -> "Neighbours":
        """What ``state`` and ``files`` gave.

        Raises:
            BundleError: tensors are missing or do not fit together, or a picture is no thumbnail.
        """
        try:
            mean, spread, bank, rows = (state[name] for name in ("mean", "spread", "bank", "rows"))
        except KeyError as error:
            raise BundleError(f"the gate's neighbours lack the tensor {error}. Fit the gate anew") from error
        n, d = bank.shape if bank.ndim == 2 else (0, 0)
        fits = mean.shape == spread.shape == (d,) and rows.shape == (n,) and rows.dtype == torch.int64 and n > 0
        if not fits or any(t.dtype != torch.float32 for t in (mean, spread, bank)) or not bool((spread > 0).all()):
            raise BundleError("the tensors of the gate's neighbours do not fit together. Fit the gate anew")
        if len(pictures) not in (0, n):
            raise BundleError(f"the gate has {len(pictures)} thumbnails for {n} neighbours. Fit the gate anew")
        for position, picture in enumerate(pictures):
            _check(picture, name_of(position))
        return cls(mean, spread, bank, rows, tuple(pictures))

    @classmethod
    def read(cls, bundle: Bundle) -> "Neighbours":
        """From a gate's stage ``neighbours`` and its folder of that name.

        Raises:
            BundleError: as ``from_state``, or the folder holds anything but numbered PNG files.
        """
        found = [name for name in bundle.extra if name.startswith(f"{FOLDER}/")]
        expected = [name_of(position) for position in range(len(found))]
        if found != expected:
            odd = sorted(set(found) ^ set(expected))[0]
            raise BundleError(f"{bundle.folder}: {FOLDER}/ must hold thumbnails numbered from 0, not {odd!r}. Fit the gate anew")
        return cls.from_state(bundle.stages.get(FOLDER, {}), [bundle.read_extra(name) for name in found])


def name_of(position: int) -> str:
    """File of a thumbnail inside a gate."""
    return f"{FOLDER}/{position:07d}.png"


def thumbnail(picture: np.ndarray, side: int = SIDE) -> bytes:
    """PNG of a picture, its longer side reduced to ``side`` pixels; without metadata.

    Args:
        picture: uint8 ``(H, W)`` or ``(H, W, 3)``.

    Raises:
        ConfigError: another shape or type.
    """
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or picture.size == 0 or picture.shape[2:] not in ((), (3,)):
        raise ConfigError(f"a picture must be uint8 (H, W) or (H, W, 3), not {picture.dtype} {picture.shape}")
    image = Pillow.fromarray(np.ascontiguousarray(picture))
    image.thumbnail((side, side), Pillow.Resampling.LANCZOS, reducing_gap=None)
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def decode(content: bytes, name: str) -> UInt8[np.ndarray, "h w *c"]:
    """Pixels of a thumbnail.

    Raises:
        BundleError: no PNG, larger than a thumbnail, or damaged.
    """
    image = _check(content, name)
    try:
        return np.asarray(image)
    except Exception as error:  # a decoder may raise anything on a damaged file
        raise BundleError(f"{name} is a damaged PNG ({type(error).__name__}). Fit the gate anew") from error


def _check(content: bytes, name: str) -> Pillow.Image:
    """Open a PNG without decoding it; nothing but a small grey or colour PNG passes."""
    if len(content) > _LARGEST_FILE or not content.startswith(_SIGNATURE):
        raise BundleError(f"{name} is no PNG of at most {_LARGEST_FILE} bytes. Fit the gate anew")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            image = Pillow.open(io.BytesIO(content), formats=["PNG"])
    except Exception as error:  # a decoder may raise anything on a damaged file
        raise BundleError(f"{name} is a damaged PNG ({type(error).__name__}). Fit the gate anew") from error
    if max(image.size) > SIDE or image.mode not in ("L", "RGB"):
        raise BundleError(
            f"{name} is {image.size[0]} x {image.size[1]} {image.mode}; a thumbnail has at most {SIDE} pixels a side, L or RGB"
        )
    return image


def _finite(features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    values = features.detach().cpu().float()
    bad = torch.nonzero(~torch.isfinite(values).all(dim=1)).flatten().tolist()
    if bad:
        raise SignalError(f"features of shape {tuple(features.shape)} are not finite in rows {bad[:8]}")
    return values


def _unit(values: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return torch.nn.functional.normalize(values, dim=1, eps=1e-12)
