"""The header of a DICOM file: only the attributes that reading needs, each fetched with care.

Nothing here prints, logs or converts a data set to text, and messages never quote a value: values are patient data.
"""

import hashlib
import math
import re
import struct
import zlib
from dataclasses import dataclass
from io import BufferedIOBase, BytesIO
from typing import Any

from offmap.core.errors import ReadError
from offmap.read import tags
from offmap.read.limits import Limits

_TABLES = tuple(
    name.format(colour)
    for colour in ("Red", "Green", "Blue")
    for name in ("{}PaletteColorLookupTableDescriptor", "{}PaletteColorLookupTableData", "Segmented{}PaletteColorLookupTableData")
)
_NEEDED = (
    "SOPClassUID",
    "Modality",
    "Manufacturer",
    "ManufacturerModelName",
    "BodyPartExamined",
    "ViewPosition",
    "MagneticFieldStrength",
    "KVP",
    "SliceThickness",
    "SpacingBetweenSlices",
    "PatientID",
    "IssuerOfPatientID",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "RescaleSlope",
    "RescaleIntercept",
    "WindowCenter",
    "WindowWidth",
    "ModalityLUTSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "GridFrameOffsetVector",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    *_TABLES,
)
IDENTIFIERS = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "StudyDate",
    "AccessionNumber",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
)
_DEVICE_TEXT = {"manufacturer": "Manufacturer", "model": "ManufacturerModelName"}
_DEVICE_CODE = {"body_part": "BodyPartExamined", "view": "ViewPosition"}
_DEVICE_NUMBER = {"field_strength_t": "MagneticFieldStrength", "kvp": "KVP", "slice_thickness_mm": "SliceThickness"}
_CODE = re.compile(r"[A-Z0-9_ ]{1,16}")
_MAX_HEADER = 256 << 20


@dataclass(frozen=True, repr=False)
class Header:
    """An open DICOM file up to its pixels.

    Args:
        data: pydicom's data set, with the needed attributes only; never printed.
        file: the open file (or the expanded bytes of a deflated one).
        size: bytes in ``file``.
        syntax: transfer syntax UID.
        keyword: ``PixelData``, ``FloatPixelData`` or ``DoubleFloatPixelData``.
        vr: value representation of the pixels.
        at: where the value of the pixel element begins.
        length: its length in bytes; -1 where undefined (encapsulated).
    """

    data: Any
    file: BufferedIOBase
    size: int
    syntax: str
    keyword: str
    vr: str
    at: int
    length: int


def read(file: BufferedIOBase, *, stored: int, limits: Limits, identifiers: bool = False) -> Header:
    """Read a header, refusing bombs and deep nesting.

    Raises:
        ReadError: ``bomb``, ``truncated``, ``no_pixels`` or ``unreadable``.
    """
    import pydicom

    file.seek(0)
    syntax, start = tags.meta(file.read(65536))
    if syntax == tags.DEFLATED:
        file, stored, start = _inflated(file, start, stored, limits)
    file.seek(0)
    wanted = [*_NEEDED, *IDENTIFIERS] if identifiers else _NEEDED
    try:
        data = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=wanted)
    except RecursionError as error:
        raise ReadError("unreadable", f"sequences are nested deeper than {tags.MAX_DEPTH} levels") from error
    except MemoryError:
        raise
    except Exception as error:
        raise ReadError("unreadable", f"the DICOM header cannot be read ({type(error).__name__})") from error
    end = min(file.tell(), stored)
    big = syntax == tags.BIG_ENDIAN
    whole = _check_header(file, start, end, big=big)
    file.seek(end)
    element = file.read(12)
    if len(element) < 8:
        raise _without_pixels(data, whole)
    keyword, vr, at, length = _pixel_element(element, end, big)
    return Header(data, file, stored, syntax, keyword, vr, at, length)


def _inflated(file: BufferedIOBase, start: int, stored: int, limits: Limits) -> tuple[BufferedIOBase, int, int]:
    """A deflated file as if it had been written plainly, expanded no further than the limit."""
    file.seek(start)
    packed = file.read()
    room = limits.expansion(stored)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = inflater.decompress(packed, room)
    except zlib.error as error:
        raise ReadError("unreadable", "the deflated data set is damaged") from error
    if inflater.unconsumed_tail:
        raise ReadError("bomb", f"{stored:,} bytes would inflate to more than {room:,}")
    if not inflater.eof:
        raise ReadError("truncated", "the deflated data set is cut off")
    syntax = struct.pack("<HH2sH", 2, 0x10, b"UI", 20) + b"1.2.840.10008.1.2.1\0"
    head = bytes(128) + b"DICM" + struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(syntax)) + syntax
    return BytesIO(head + plain), len(head) + len(plain), len(head)


def _check_header(file: BufferedIOBase, start: int, end: int, *, big: bool) -> bool:
    """Whether the header ends where its elements say; refuses deep nesting."""
    if end - start > _MAX_HEADER:
        raise ReadError("bomb", f"the DICOM header has {end - start:,} bytes")
    file.seek(start)
    data = file.read(end - start)
    last = 0
    for element in tags.walk(data, implicit=not data[4:6].isalpha(), big=big):
        if element.depth == 0 and element.length != 0xFFFFFFFF:
            last = element.at + element.length
    return last <= len(data)


def _without_pixels(data: Any, whole: bool) -> ReadError:
    if not whole or "PhotometricInterpretation" in data or "Rows" in data:
        return ReadError("truncated", "the DICOM file ends before its pixels")
    return ReadError("no_pixels", "the DICOM file holds no image")


def _pixel_element(element: bytes, at: int, big: bool) -> tuple[str, str, int, int]:
    order = ">" if big else "<"
    number = struct.unpack(f"{order}H", element[2:4])[0]
    keyword = {0x0008: "FloatPixelData", 0x0009: "DoubleFloatPixelData"}.get(number, "PixelData")
    vr = element[4:6].decode("ascii", "replace")
    if vr in ("OB", "OW", "OF", "OD", "UN"):
        if len(element) < 12:
            raise ReadError("truncated", "the DICOM file ends before its pixels")
        start, length = at + 12, struct.unpack(f"{order}I", element[8:12])[0]
    else:
        vr, start, length = "OW", at + 8, struct.unpack(f"{order}I", element[4:8])[0]
    return keyword, vr, start, -1 if length == 0xFFFFFFFF else length


def value(data: Any, keyword: str) -> Any:
    """An attribute's value, or None where it is absent or empty.

    Raises:
        ReadError: the stored value is malformed; the message names the attribute only.
    """
    try:
        found = data.get(keyword)
    except MemoryError:
        raise
    except Exception as error:
        raise ReadError("unreadable", f"the attribute {keyword} holds no valid value") from error
    return None if found is None or found == "" else found


def numbers(data: Any, keyword: str, count: int) -> tuple[float, ...] | None:
    """An attribute of ``count`` numbers (at least), or None where absent.

    Raises:
        ReadError: fewer numbers, or none at all.
    """
    found = value(data, keyword)
    if found is None:
        return None
    try:
        many = tuple(float(v) for v in (found if hasattr(found, "__iter__") and not isinstance(found, str) else [found]))
    except (TypeError, ValueError) as error:
        raise ReadError("unreadable", f"the attribute {keyword} holds no valid number") from error
    if len(many) < count:
        raise ReadError("unreadable", f"the attribute {keyword} has {len(many)} numbers, {count} expected")
    return many


def whole(data: Any, keyword: str, default: int | None = None) -> int:
    """An attribute that is one integer.

    Raises:
        ReadError: absent without a default, or no integer.
    """
    found = numbers(data, keyword, 1)
    if found is None:
        if default is None:
            raise ReadError("unreadable", f"the attribute {keyword} is missing")
        return default
    if not math.isfinite(found[0]) or found[0] != int(found[0]):
        raise ReadError("unreadable", f"the attribute {keyword} is no integer")
    return int(found[0])


def text(data: Any, keyword: str, *, longest: int = 64) -> str:
    """An attribute as one short printable line; empty where absent or malformed."""
    try:
        found = value(data, keyword)
    except ReadError:
        return ""
    plain = "" if found is None else "".join(c for c in str(found) if c.isprintable())
    return plain.strip()[:longest]


def code(data: Any, keyword: str) -> str:
    """A coded string (upper case letters, digits, underscore); empty where it is anything else."""
    found = text(data, keyword)
    return found if _CODE.fullmatch(found) else ""


def device(data: Any) -> dict[str, str]:
    """What made the image, from a fixed list of device attributes; never a patient, a date or free text."""
    found = {name: text(data, keyword, longest=40) for name, keyword in _DEVICE_TEXT.items()}
    found |= {name: code(data, keyword) for name, keyword in _DEVICE_CODE.items()}
    for name, keyword in _DEVICE_NUMBER.items():
        try:
            number = numbers(data, keyword, 1)
        except ReadError:
            continue
        if number is not None and math.isfinite(number[0]):
            found[name] = f"{number[0]:g}"
    return {name: entry for name, entry in found.items() if entry}


def group_key(patient: str, issuer: str = "") -> str:
    """A pseudonym that is equal for equal patients: 16 hexadecimal digits of a SHA-256. Empty for an empty id.

    It hides the id from a reader, not from somebody who can try all ids.
    """
    if not patient:
        return ""
    return hashlib.sha256(f"offmap patient\0{patient}\0{issuer}".encode(errors="surrogatepass")).hexdigest()[:16]


def identify(data: Any) -> dict[str, str]:
    """Patient data, for users who asked for it."""
    found = {keyword: text(data, keyword, longest=128) for keyword in IDENTIFIERS}
    return {keyword: entry for keyword, entry in found.items() if entry}
