"""Frames of a DICOM file, one at a time, through one decoder a transfer syntax.

The decoder is pinned: pydicom's fall-back from one to the next lets the most lenient one win, which has been seen to
turn half a JPEG-LS frame into wrong pixels. Every codestream is checked for its end and its size first.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from io import BufferedIOBase
from typing import Any

import numpy as np

from offmap.core.errors import ReadError
from offmap.read import codestream
from offmap.read.dicom_header import Header, value, whole
from offmap.read.limits import Limits, check_size
from offmap.read.tags import BIG_ENDIAN

_PREFIX = "1.2.840.10008.1.2"
NATIVE = frozenset({_PREFIX, f"{_PREFIX}.1", f"{_PREFIX}.1.99", f"{_PREFIX}.2"})
_DEFLATED, _PLAIN = f"{_PREFIX}.1.99", f"{_PREFIX}.1"
_EXTENDED = f"{_PREFIX}.4.51"
_RLE = f"{_PREFIX}.5"
DECODERS: dict[str, str] = {
    f"{_PREFIX}.4.50": "pillow",
    _EXTENDED: "pillow",
    f"{_PREFIX}.4.57": "gdcm",
    f"{_PREFIX}.4.70": "gdcm",
    f"{_PREFIX}.4.80": "pyjpegls",
    f"{_PREFIX}.4.81": "pyjpegls",
    f"{_PREFIX}.4.90": "pylibjpeg",
    f"{_PREFIX}.4.91": "pylibjpeg",
    f"{_PREFIX}.4.201": "pylibjpeg",
    f"{_PREFIX}.4.202": "pylibjpeg",
    f"{_PREFIX}.4.203": "pylibjpeg",
    _RLE: "pydicom",
}
"""pydicom plugin by transfer syntax; JPEG Extended of 12 bits goes to imagecodecs, since no plugin here decodes it."""

_J2K = frozenset(u for u, plugin in DECODERS.items() if plugin == "pylibjpeg")
_GREY = frozenset({"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"})
_COLOUR = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"})
_OTHER = frozenset({"HSV", "ARGB", "CMYK", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "XYB"})


@dataclass(frozen=True, slots=True)
class Layout:
    """The image pixel module, checked."""

    rows: int
    columns: int
    samples: int
    photometric: str
    planar: int
    allocated: int
    stored: int
    signed: bool
    frames: int

    @property
    def floating(self) -> bool:
        """Whether samples are IEEE floats."""
        return self.stored == 0

    @property
    def frame_bits(self) -> int:
        """Bits of one native frame."""
        bits = self.rows * self.columns * self.samples * self.allocated
        return bits * 2 // 3 if self.photometric == "YBR_FULL_422" else bits


def layout(header: Header, limits: Limits) -> Layout:
    """Read and check the image pixel module.

    Raises:
        ReadError: ``bomb``, ``bad_geometry``, ``small``, ``bad_photometric``, ``unsupported`` or ``unreadable``.
    """
    data = header.data
    rows, columns, samples = whole(data, "Rows"), whole(data, "Columns"), whole(data, "SamplesPerPixel", 1)
    limits.check(rows * columns * max(1, samples))
    check_size(rows, columns)
    photometric = _photometric(header, samples)
    floating = header.keyword != "PixelData"
    allocated = whole(data, "BitsAllocated", 64 if header.keyword.startswith("Double") else 32 if floating else None)
    stored = 0 if floating else whole(data, "BitsStored", allocated)
    if allocated not in (1, 8, 16, 32, 64) or not (floating or 1 <= stored <= allocated):
        raise ReadError("unsupported", f"{stored} bits stored in {allocated} allocated are not read")
    native = header.syntax in NATIVE
    if native and not floating and whole(data, "HighBit", stored - 1) != stored - 1:
        raise ReadError("unsupported", f"{stored} bits stored that do not lie at the lower end of their word are not read")
    if photometric.startswith("YBR") and allocated != 8 and native:
        raise ReadError("unsupported", "YBR colour of more than 8 bits is not read")
    frames = whole(data, "NumberOfFrames", 1)
    if frames < 1:
        raise ReadError("no_pixels", "the number of frames is not positive")
    signed = whole(data, "PixelRepresentation", 0) == 1
    return Layout(rows, columns, samples, photometric, whole(data, "PlanarConfiguration", 0), allocated, stored, signed, frames)


def _photometric(header: Header, samples: int) -> str:
    name = str(value(header.data, "PhotometricInterpretation") or "").strip()
    if name in _OTHER:
        raise ReadError("unsupported", f"photometric interpretation {name} is not read")
    if name not in _GREY | _COLOUR:
        raise ReadError("bad_photometric", "the photometric interpretation is missing or not one that DICOM knows")
    if samples != (1 if name in _GREY else 3):
        raise ReadError("bad_photometric", f"photometric interpretation {name} with {samples} samples per pixel")
    if name in ("YBR_RCT", "YBR_ICT") and header.syntax not in _J2K:
        raise ReadError("bad_photometric", f"photometric interpretation {name} outside JPEG 2000")
    if name != "MONOCHROME2" and header.keyword != "PixelData":
        raise ReadError("bad_photometric", f"photometric interpretation {name} with floating-point pixels")
    return name


@dataclass(frozen=True)
class Frames:
    """Random access to the frames of one file; nothing is decoded before ``decode``.

    Raises:
        ReadError: ``truncated`` or ``unsupported``, when built.
    """

    header: Header
    layout: Layout
    limits: Limits

    def __post_init__(self) -> None:
        if self.header.syntax in NATIVE:
            self._check_native()
        elif self.header.syntax not in DECODERS:
            raise ReadError("unsupported", f"transfer syntax {_printable(self.header.syntax)} is not read")
        elif len(self._spans) != self.layout.frames:
            raise ReadError("truncated", f"{len(self._spans)} of {self.layout.frames} frames are in the file")

    def decode(self, index: int) -> np.ndarray:
        """Frame ``index`` as stored numbers, ``(H, W)`` or RGB ``(H, W, 3)``.

        Raises:
            ReadError: ``truncated``, ``bad_geometry``, ``bad_photometric`` or ``unreadable``.
        """
        pixels = self._native(index) if self.header.syntax in NATIVE else self._compressed(index)
        expected = (self.layout.rows, self.layout.columns) + ((3,) if self.layout.samples == 3 else ())
        if pixels.shape != expected:
            raise ReadError("bad_geometry", f"a frame has the shape {pixels.shape}, the header says {expected}")
        return pixels if pixels.dtype.isnative else pixels.astype(pixels.dtype.newbyteorder("="))

    def _check_native(self) -> None:
        if self.header.length < 0:
            raise ReadError("unreadable", "uncompressed pixels have no defined length")
        expected = (self.layout.frame_bits * self.layout.frames + 7) // 8
        present = min(self.header.length, self.header.size - self.header.at)
        if present < expected:
            raise ReadError("truncated", f"{present:,} of {expected:,} bytes of pixels are in the file")

    def _options(self) -> dict[str, Any]:
        lay = self.layout
        options: dict[str, Any] = {
            "rows": lay.rows,
            "columns": lay.columns,
            "samples_per_pixel": lay.samples,
            "photometric_interpretation": lay.photometric,
            "bits_allocated": lay.allocated,
            "bits_stored": lay.stored or lay.allocated,
            "pixel_representation": int(lay.signed),
            "pixel_keyword": self.header.keyword,
        }
        return options | ({"planar_configuration": lay.planar} if lay.samples > 1 else {})

    def _native(self, index: int) -> np.ndarray:
        from pydicom.pixels import get_decoder

        if self.layout.allocated == 1 and self.layout.frame_bits % 8:
            return self._packed_bits(index)
        self.header.file.seek(self.header.at)
        syntax = _PLAIN if self.header.syntax == _DEFLATED else self.header.syntax
        options = self._options() | {"number_of_frames": self.layout.frames, "pixel_vr": self.header.vr}
        return _guarded(lambda: get_decoder(syntax).as_array(self.header.file, index=index, **options)[0], "unreadable")

    def _packed_bits(self, index: int) -> np.ndarray:
        """A one-bit frame that begins or ends inside a byte, which pydicom's access by index cuts short."""
        if self.header.syntax == BIG_ENDIAN or self.layout.samples != 1:
            raise ReadError("unsupported", "one-bit frames that do not fill whole bytes are read in little-endian grey only")
        count = self.layout.frame_bits
        first, last = index * count // 8, ((index + 1) * count + 7) // 8
        raw = np.frombuffer(_read(self.header.file, self.header.at + first, last - first), np.uint8)
        bits = np.unpackbits(raw, bitorder="little")[index * count - 8 * first :][:count]
        return bits.reshape(self.layout.rows, self.layout.columns)

    def _compressed(self, index: int) -> np.ndarray:
        frame = b"".join(_read(self.header.file, at, length) for at, length in self._spans[index])
        syntax = self.header.syntax
        if syntax == _RLE:
            self._check_rle(frame)
            return self._plugin(frame, syntax)
        stream = codestream.jpeg2000(frame) if syntax in _J2K else codestream.jpeg(frame)
        if (stream.rows, stream.columns) != (self.layout.rows, self.layout.columns):
            raise ReadError("bad_geometry", f"a frame is {stream.rows} x {stream.columns}, the header says otherwise")
        if stream.components != self.layout.samples:
            raise ReadError("bad_photometric", f"a frame has {stream.components} components, the header says {self.layout.samples}")
        if syntax == _EXTENDED and stream.precision > 8:
            return self._twelve_bits(frame)
        return self._plugin(frame, syntax)

    def _check_rle(self, frame: bytes) -> None:
        if len(frame) < 64:
            raise ReadError("truncated", "an RLE frame ends inside its header")
        count, *offsets = struct.unpack("<16I", frame[:64])
        if count > 15 or any(not 64 <= at < len(frame) for at in offsets[: min(count, 15)]):
            raise ReadError("truncated", "a segment of an RLE frame lies outside it")

    def _plugin(self, frame: bytes, syntax: str) -> np.ndarray:
        from pydicom.encaps import encapsulate
        from pydicom.pixels import get_decoder

        decoder = get_decoder(syntax)
        if DECODERS[syntax] not in decoder.available_plugins:
            raise ReadError("unsupported", f"the decoder {DECODERS[syntax]} for this transfer syntax is not installed")
        if syntax == _EXTENDED:
            options = self._options() | {"number_of_frames": 1, "bits_stored": 8, "bits_allocated": 8}
        else:
            options = self._options() | {"number_of_frames": 1}
        packed = encapsulate([frame], has_bot=False)
        reason = "truncated" if syntax == _RLE else "unreadable"
        return _guarded(lambda: decoder.as_array(packed, index=0, decoding_plugin=DECODERS[syntax], **options)[0], reason)

    def _twelve_bits(self, frame: bytes) -> np.ndarray:
        import imagecodecs

        if self.layout.samples != 1:
            raise ReadError("unsupported", "12-bit JPEG in colour is not read")
        return _guarded(lambda: imagecodecs.jpeg8_decode(frame), "unreadable")

    @cached_property
    def _spans(self) -> list[list[tuple[int, int]]]:
        """Fragments (place, length) of each frame."""
        fragments, table = _fragments(self.header)
        frames = self.layout.frames
        if frames == 1:
            return [[span for span, _ in fragments]] if fragments else []
        if len(fragments) == frames:
            return [[span] for span, _ in fragments]
        starts = table if len(table) == frames else self._extended_table()
        if len(starts) != frames:
            return [[span] for span, _ in fragments]
        bounds = [*starts[1:], math.inf]
        return [[span for span, at in fragments if low <= at < high] for low, high in zip(starts, bounds, strict=True)]

    def _extended_table(self) -> list[int]:
        raw = value(self.header.data, "ExtendedOffsetTable")
        return list(struct.unpack(f"<{len(raw) // 8}Q", raw[: len(raw) // 8 * 8])) if isinstance(raw, bytes) else []


def _fragments(header: Header) -> tuple[list[tuple[tuple[int, int], int]], list[int]]:
    """Fragments as ((place, length), offset from the first one's item), and the basic offset table."""
    fragments: list[tuple[tuple[int, int], int]] = []
    table: list[int] = []
    at, first = header.at, -1
    while True:
        tag = _read(header.file, at, 8)
        group, element, length = struct.unpack("<HHI", tag)
        if (group, element) == (0xFFFE, 0xE0DD):
            return fragments, table
        if (group, element) != (0xFFFE, 0xE000):
            raise ReadError("unreadable", "the fragments of the compressed pixels are damaged")
        if at + 8 + length > header.size:
            raise ReadError("truncated", "a fragment of the compressed pixels is cut off")
        if first < 0:
            raw = _read(header.file, at + 8, length)
            table = list(struct.unpack(f"<{length // 4}I", raw[: length // 4 * 4]))
            first = at + 8 + length
        else:
            fragments.append(((at + 8, length), at - first))
        at += 8 + length


def _read(file: BufferedIOBase, at: int, length: int) -> bytes:
    file.seek(at)
    data = file.read(length)
    if len(data) < length:
        raise ReadError("truncated", "the file ends before its pixels do")
    return data


def _guarded(decode: Callable[[], np.ndarray], reason: str) -> np.ndarray:
    """Run a decoder; its message is dropped, since it may quote the file."""
    try:
        return decode()
    except MemoryError:
        raise
    except Exception as error:
        verb = "ends before its pixels do" if reason == "truncated" else "cannot be decoded"
        raise ReadError(reason, f"a frame {verb} ({type(error).__name__})") from error


def _printable(uid: str) -> str:
    return uid if len(uid) <= 64 and all(c.isdigit() or c == "." for c in uid) else "(not a UID)"
