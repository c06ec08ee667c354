"""The things that travel between stages: images, refusals, signals, verdicts.

Nothing here imports torch, so that decode workers stay small.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    Signals = Mapping[str, Tensor]
else:
    Signals = Mapping
"""Named tensors of one batch: ``image (N,C,*S)``, ``features.<layer> (N,D)``, ``feature_map.<layer> (N,C,*s)``,
``logits (N,K)``, ``image_embedding (N,D)``, ``proxy_features.<layer> (N,D)`` (of the same images mixed with others, for fitting only),
``ensemble.logits (N,S,K)`` of S networks, ``label (N,)``; static (no batch axis): ``head.weight (K,D)``, ``head.bias (K,)``,
``text.embedding (K,D)``. Those of further passes have their settings in the name, ``odin.logits:epsilon=0.0014,temperature=1000 (N,K)``,
``mc_dropout.logits:passes=30 (N,S,K)``, ``mecam.map:exits=0 (N,1,H,W)``."""

Status = Literal["ok", "not_assessed"]
Verdict = Literal["accept", "review", "reject", "not_assessed"]

REASONS: Mapping[str, str] = MappingProxyType(
    {
        "unreadable": "the file cannot be opened or is no image format that offmap reads",
        "empty": "the file holds no bytes",
        "truncated": "the file ends before its pixels do",
        "bomb": "the file would expand beyond the size or memory limit",
        "no_pixels": "the file holds no image (a report, a plan, a directory)",
        "constant": "all pixels have one value",
        "non_finite": "pixels are NaN or infinite",
        "bad_geometry": "spacing or size is zero, negative or impossible",
        "bad_photometric": "the colour interpretation contradicts the pixels",
        "unsupported": "a known format in a coding that offmap does not read",
        "mixed_series": "the slices of a series do not belong together",
        "wrong_modality": "the DICOM modality is not one that the gate was fitted on",
        "timeout": "reading took longer than the time limit",
        "crashed": "the reader's process died on this file",
        "permission": "the file may not be read",
        "link_loop": "a symbolic link leads to itself",
        "small": "the image is smaller than the encoder can see",
        "wrong_measurement": "the array is no measurement of the gate's operator: other views, bins, coils or channels",
        "diverged": "the reconstruction ran away: the measurement is far out of scale, or the sampler's steps are too large",
        "noise_level": "what the reconstruction leaves of the measurement does not fit the stated noise",
        "no_foreground": "the reconstruction shows nothing but air",
        "failed": "an unexpected error; the log names its type",
    }
)
"""Reason codes of the score table, with what each means."""


@dataclass(frozen=True, slots=True)
class Source:
    """A place that yields one or more images.

    Args:
        path: file, or the folder of a series.
        item: name for the score table, as the user gave it (without the ``[17]`` or ``#3`` of its parts).
        key: array name inside an ``.npz``; empty otherwise.
        members: files of one series in walking order; empty for a single file.
        meta: columns of the CSV manifest that named it.
        volume: one item per series or NIfTI file instead of one per slice.
    """

    path: Path
    item: str
    key: str = ""
    members: tuple[Path, ...] = ()
    meta: Mapping[str, str] = field(default_factory=dict)
    volume: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a pixel grid lies on the image as it was read.

    Args:
        shape: size of the image as read, in the order of its axes ``(H, W)`` or ``(D, H, W)``.
        low, high: edges of the grid on each axis, in pixels of the image as read (0 = its first edge,
            ``shape[i]`` = its last; outside that range the grid was padded).
    """

    shape: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def whole(cls, shape: Sequence[int]) -> "Frame":
        """The frame of an image that was not cropped."""
        return cls(tuple(shape), (0.0,) * len(shape), tuple(float(n) for n in shape))

    @property
    def share(self) -> float:
        """Share of the image as read that lies inside the grid, in [0, 1]."""
        inside = [max(0.0, min(high, n) - max(low, 0.0)) / n for low, high, n in zip(self.low, self.high, self.shape, strict=True)]
        return float(np.prod(inside))


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """One image, before or after preparation.

    Args:
        pixels: ``(C, H, W)`` or ``(C, D, H, W)``, C = 1 or 3. As read: the stored numbers after the file's own
            rescale (HU for CT), MONOCHROME1 already inverted, colour as RGB. After preparation: float32 in [0, 1].
        item: name in the score table.
        spacing: mm per pixel, in the order of the spatial axes; None where the file does not say.
        frame: where the grid lies on the image as read.
        bits: bits stored per sample in the file (8 for a JPEG).
        file_format: ``jpeg``, ``png``, ``tiff``, ``dicom``, ``nifti``, ``npz``, ``array``.
        modality: DICOM modality (``CT``, ``MR``, ...); empty where unknown.
        window: centre and width stored in the file, in the units of ``pixels``; None where absent.
        group: digest that is equal for images of one patient; empty where unknown.
        digest: SHA-256 of the file's bytes and of the part's number.
        meta: device and manifest columns; never patient data.
        identifiers: patient data, filled only when the user asked for it; never printed.
        mask: ``(H, W)`` or ``(D, H, W)``, True where the image is scored; None = everywhere.
    """

    pixels: np.ndarray
    item: str
    frame: Frame
    spacing: tuple[float, ...] | None = None
    bits: int = 8
    file_format: str = "array"
    modality: str = ""
    window: tuple[float, float] | None = None
    group: str = ""
    digest: str = ""
    meta: Mapping[str, str] = field(default_factory=dict)
    identifiers: Mapping[str, str] = field(default_factory=dict, repr=False)
    mask: np.ndarray | None = field(default=None, repr=False)

    @property
    def spatial(self) -> tuple[int, ...]:
        """Size without channels: ``(H, W)`` or ``(D, H, W)``."""
        return tuple(int(n) for n in self.pixels.shape[1:])

    def __repr__(self) -> str:
        return f"Image({self.item!r}, {self.pixels.dtype} {self.pixels.shape}, {self.file_format})"


@dataclass(frozen=True, slots=True)
class NotAssessed:
    """An item that gets a row but no score.

    Args:
        item: name in the score table.
        reason: one of ``REASONS``.
        detail: a sentence for people, without patient data.
    """

    item: str
    reason: str
    detail: str = ""


Outcome = Image | NotAssessed
"""What reading one item gives."""

STATIC = ("head.weight", "head.bias", "text.embedding")
"""Signals without a batch axis."""
