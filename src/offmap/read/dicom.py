"""DICOM: a file's frames as images in the units of the modality (HU for CT)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from io import BufferedIOBase
from typing import Any

import numpy as np

from offmap.core.errors import ReadError
from offmap.core.types import Frame, Image
from offmap.read import dicom_header as head
from offmap.read.dicom_header import Header
from offmap.read.dicom_pixels import Frames, Layout, layout
from offmap.read.limits import Limits
from offmap.read.parts import Part


@dataclass(frozen=True)
class Plane:
    """Where one frame lies in the patient, in mm; None where the file does not say."""

    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, float] | None
    thickness: float | None
    number: int


@dataclass(frozen=True, repr=False)
class DicomFile:
    """An open DICOM image file; no frame is decoded before it is asked for."""

    header: Header
    layout: Layout
    frames: Frames
    identifiers: bool

    def image(self, index: int) -> Image:
        """Frame ``index``, with spacing, window and device data.

        Raises:
            ReadError: the frame is damaged, or its geometry impossible.
        """
        data = self.header.data
        stored = self.frames.decode(index)
        pixels, window = self._modality_units(stored, index)
        channelled = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        looked_up = self.layout.photometric == "PALETTE COLOR"
        return Image(
            channelled,
            "",
            Frame.whole(channelled.shape[1:]),
            spacing=self.plane(index).spacing,
            bits=8 * pixels.dtype.itemsize if looked_up else self.layout.stored or self.layout.allocated,
            file_format="dicom",
            modality=head.code(data, "Modality"),
            window=window,
            group=head.group_key(head.text(data, "PatientID"), head.text(data, "IssuerOfPatientID")),
            meta=head.device(data),
            identifiers=head.identify(data) if self.identifiers else {},
        )

    def plane(self, index: int) -> Plane:
        """Geometry of frame ``index``.

        Raises:
            ReadError: ``bad_geometry`` for spacing or position that cannot be.
        """
        data = self.header.data
        measures = self._group(index, "PixelMeasuresSequence")
        spacing = head.numbers(measures, "PixelSpacing", 2) or head.numbers(data, "ImagerPixelSpacing", 2)
        if spacing is not None and any(not math.isfinite(s) or s <= 0 for s in spacing[:2]):
            raise ReadError("bad_geometry", "the pixel spacing is zero, negative or not finite")
        position = head.numbers(self._group(index, "PlanePositionSequence"), "ImagePositionPatient", 3)
        orientation = head.numbers(self._group(index, "PlaneOrientationSequence"), "ImageOrientationPatient", 6)
        if any(not math.isfinite(v) for v in (*(position or ()), *(orientation or ()))):
            raise ReadError("bad_geometry", "the image position or orientation is not finite")
        offsets = head.numbers(data, "GridFrameOffsetVector", 1)
        if offsets is not None and len(offsets) == self.layout.frames and position and orientation:
            position = tuple(np.add(position, offsets[index] * normal(orientation)).tolist())
        thickness = head.numbers(measures, "SliceThickness", 1)
        thick = thickness[0] if thickness and math.isfinite(thickness[0]) and thickness[0] > 0 else None
        number = head.whole(data, "InstanceNumber", 0) if self.layout.frames == 1 else index
        return Plane(position, orientation, (spacing[0], spacing[1]) if spacing else None, thick, number)

    def _group(self, index: int, sequence: str) -> Any:
        """Functional group of a frame: its own, else the shared one, else the data set itself."""
        data = self.header.data
        per_frame = head.value(data, "PerFrameFunctionalGroupsSequence")
        shared = head.value(data, "SharedFunctionalGroupsSequence")
        candidates = [per_frame[index]] if per_frame is not None and index < len(per_frame) else []
        candidates += [shared[0]] if shared is not None and len(shared) else []
        for candidate in candidates:
            found = head.value(candidate, sequence)
            if found is not None and len(found):
                return found[0]
        return data

    def _modality_units(self, stored: np.ndarray, index: int) -> tuple[np.ndarray, tuple[float, float] | None]:
        """Stored numbers -> the modality's units, larger = brighter; and the window in the same units."""
        if self.layout.samples == 3:
            return stored, None
        if self.layout.photometric == "PALETTE COLOR":
            return self._palette(stored), None
        inverted = self.layout.photometric == "MONOCHROME1"
        top = -1 if self.layout.signed else (1 << self.layout.stored) - 1
        window = self._window(index)
        if head.value(self.header.data, "ModalityLUTSequence") is not None:
            pixels, mirror = self._modality_table(stored)
            pixels = mirror - pixels if inverted else pixels
        else:
            slope, intercept = self._rescale(index)
            mirror = slope * top + 2 * intercept
            pixels = np.subtract(top, stored, dtype=stored.dtype, casting="unsafe") if inverted else stored
            if (slope, intercept) != (1.0, 0.0):
                pixels = (pixels * np.float64(slope) + intercept).astype(np.float32)
        if window is not None and inverted:
            window = (mirror - window[0], window[1])
        return pixels, window

    def _rescale(self, index: int) -> tuple[float, float]:
        source = self._group(index, "PixelValueTransformationSequence")
        slope, intercept = head.numbers(source, "RescaleSlope", 1), head.numbers(source, "RescaleIntercept", 1)
        return slope[0] if slope else 1.0, intercept[0] if intercept else 0.0

    def _window(self, index: int) -> tuple[float, float] | None:
        """Centre and width of the first window; a malformed one counts as absent, since it is a hint only."""
        source = self._group(index, "FrameVOILUTSequence")
        try:
            centre, width = head.numbers(source, "WindowCenter", 1), head.numbers(source, "WindowWidth", 1)
        except ReadError:
            return None
        if not centre or not width or not math.isfinite(centre[0]) or not math.isfinite(width[0]) or width[0] <= 0:
            return None
        return centre[0], width[0]

    def _modality_table(self, stored: np.ndarray) -> tuple[np.ndarray, float]:
        from pydicom.pixels import apply_modality_lut

        try:
            table = head.value(self.header.data, "ModalityLUTSequence")[0]
            bits = int(table.LUTDescriptor[2])
            return apply_modality_lut(stored, self.header.data), float((1 << bits) - 1)
        except MemoryError:
            raise
        except Exception as error:
            raise ReadError("unreadable", f"the modality table is malformed ({type(error).__name__})") from error

    def _palette(self, stored: np.ndarray) -> np.ndarray:
        from pydicom.pixels import apply_color_lut

        try:
            colour = np.asarray(apply_color_lut(stored, self.header.data))[..., :3]
        except MemoryError:
            raise
        except Exception as error:
            raise ReadError("bad_photometric", f"the colour palette is missing or malformed ({type(error).__name__})") from error
        eight = colour.dtype == np.uint16 and not bool((colour & 0xFF).any())
        return (colour >> 8).astype(np.uint8) if eight else colour


def normal(orientation: tuple[float, ...]) -> np.ndarray:
    """Unit normal ``(3,)`` of an image plane.

    Raises:
        ReadError: ``bad_geometry`` when the two directions are no directions or parallel.
    """
    across = np.cross(orientation[:3], orientation[3:6])
    length = float(np.linalg.norm(across))
    if length < 0.5:
        raise ReadError("bad_geometry", "the image orientation is not made of two perpendicular unit vectors")
    return np.asarray(across / length)


def open_file(file: BufferedIOBase, *, stored: int, limits: Limits, identifiers: bool = False) -> DicomFile:
    """Read and check the header of one file.

    Raises:
        ReadError: the file is no image, damaged, a bomb, or in a coding that is not read.
    """
    header = head.read(file, stored=stored, limits=limits, identifiers=identifiers)
    lay = layout(header, limits)
    return DicomFile(header, lay, Frames(header, lay, limits), identifiers)


def parts(file: BufferedIOBase, *, stored: int, volume: bool, limits: Limits, identifiers: bool) -> Iterator[Part]:
    """One part a frame, or the file as one volume.

    Raises:
        ReadError: as ``open_file``.
    """
    opened = open_file(file, stored=stored, limits=limits, identifiers=identifiers)
    frames = opened.layout.frames
    if volume:
        from offmap.read import series

        yield Part("", partial(series.volume_of_file, opened, limits), name="volume")
        return
    for index in range(frames):
        yield Part(f"#{index}" if frames > 1 else "", partial(opened.image, index))
