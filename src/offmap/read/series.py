"""Slices of one series, or frames of one file, put together into a volume ``(C, D, H, W)``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from offmap.core.errors import ReadError
from offmap.core.types import Frame, Image
from offmap.read.dicom import DicomFile, Plane, normal, open_file
from offmap.read.dicom_header import code
from offmap.read.limits import Limits

_GAP_TOLERANCE = 0.1
"""Largest deviation of a gap between slices from the middle one, as a share of it."""


@dataclass(frozen=True)
class Slice:
    """One slice before it is decoded."""

    plane: Plane
    size: tuple[int, int, int]
    modality: str
    read: Callable[[], Image]


def volume_of_file(opened: DicomFile, limits: Limits) -> Image:
    """All frames of one file as a volume; frames without a place in the patient stay in file order.

    Raises:
        ReadError: ``mixed_series``, ``bomb``, or what reading a frame raises.
    """
    return stack([_slice(opened, index) for index in range(opened.layout.frames)], limits)


def volume_of_series(members: Sequence[Path], limits: Limits, *, identifiers: bool = False) -> Image:
    """The files of a series as a volume; a file is open only while it is read.

    Raises:
        ReadError: ``mixed_series``, ``bomb``, or what reading a file raises.
    """
    slices = []
    for member in members:
        with member.open("rb") as file:
            opened = open_file(file, stored=member.stat().st_size, limits=limits, identifiers=identifiers)
            for index in range(opened.layout.frames):
                slices.append(replace(_slice(opened, index), read=_reader(member, index, limits, identifiers)))
    return stack(slices, limits)


def _reader(member: Path, index: int, limits: Limits, identifiers: bool) -> Callable[[], Image]:
    def read() -> Image:
        with member.open("rb") as file:
            return open_file(file, stored=member.stat().st_size, limits=limits, identifiers=identifiers).image(index)

    return read


def _slice(opened: DicomFile, index: int) -> Slice:
    lay = opened.layout
    channels = 3 if lay.samples == 3 or lay.photometric == "PALETTE COLOR" else 1
    return Slice(opened.plane(index), (channels, lay.rows, lay.columns), code(opened.header.data, "Modality"), lambda: opened.image(index))


def stack(slices: Sequence[Slice], limits: Limits) -> Image:
    """Sort slices by position, check that they belong together, and decode them into one volume.

    Returns:
        ``(C, D, H, W)``, D ascending along the normal of the slices; spacing ``(between slices, rows, columns)`` in mm.

    Raises:
        ReadError: ``mixed_series`` for different sizes, modalities, orientations, spacings, for uneven gaps or two
            slices in one place; ``bomb``; what reading a slice raises.
    """
    first = slices[0]
    limits.check(int(np.prod(first.size)) * len(slices))
    _check_alike(slices)
    ordered, gap = _in_order(slices)
    image = ordered[0].read()
    volume = _filled(image, ordered)
    spacing = (gap, *first.plane.spacing) if gap is not None and first.plane.spacing is not None else None
    return replace(image, pixels=volume, frame=Frame.whole(volume.shape[1:]), spacing=spacing)


def _filled(first: Image, ordered: Sequence[Slice]) -> np.ndarray:
    channels, height, width = ordered[0].size
    volume = np.empty((channels, len(ordered), height, width), first.pixels.dtype)
    volume[:, 0] = first.pixels
    for index, entry in enumerate(ordered[1:], 1):
        pixels = entry.read().pixels
        if pixels.dtype != volume.dtype and volume.dtype != np.float32:
            volume = volume.astype(np.float32)
        volume[:, index] = pixels
    return volume


def _check_alike(slices: Sequence[Slice]) -> None:
    first = slices[0]
    for other in slices[1:]:
        if other.size != first.size:
            raise ReadError("mixed_series", f"slices of {first.size[1:]} and {other.size[1:]} pixels are in one series")
        if other.modality != first.modality:
            raise ReadError("mixed_series", "two modalities are in one series")
        pairs = ((first.plane.orientation, other.plane.orientation, 0.01), (first.plane.spacing, other.plane.spacing, 0.001))
        for one, two, tolerance in pairs:
            if (one is None) != (two is None) or (one is not None and two is not None and not np.allclose(one, two, atol=tolerance)):
                raise ReadError("mixed_series", "slices of different orientation or pixel spacing are in one series")
        if (other.plane.position is None) != (first.plane.position is None):
            raise ReadError("mixed_series", "some slices of the series have a position and some have none")


def _in_order(slices: Sequence[Slice]) -> tuple[list[Slice], float | None]:
    """Slices along their normal and mm from one to the next; without positions by instance number, gap unknown."""
    first = slices[0].plane
    if first.position is None or first.orientation is None:
        return sorted(slices, key=lambda s: s.plane.number), None
    if len(slices) == 1:
        return list(slices), first.thickness
    places = np.array([s.plane.position for s in slices]) @ normal(first.orientation)
    order = np.argsort(places, kind="stable")
    gaps = np.diff(places[order])
    middle = float(np.median(gaps))
    if middle < 1e-3 or float(gaps.min()) < 1e-3:
        raise ReadError("mixed_series", "two slices of the series lie in one place")
    if float(np.abs(gaps - middle).max()) > _GAP_TOLERANCE * middle:
        raise ReadError("mixed_series", f"the gaps between slices go from {gaps.min():.3g} to {gaps.max():.3g} mm")
    return [slices[i] for i in order], middle
