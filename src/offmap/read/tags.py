"""A flat walk over the elements of a DICOM data set, without recursion and without a library.

It answers the questions that must be asked before a hostile file is parsed: how deep are its sequences nested, does it
end where it should, to which series does it belong.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from offmap.core.errors import ReadError

SERIES_UID = 0x0020000E
TRANSFER_SYNTAX = 0x00020010
PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
IMPLICIT = "1.2.840.10008.1.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
MAX_DEPTH = 64
"""Deepest nesting of sequences that is read; real files have fewer than ten."""

_LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD


@dataclass(frozen=True, slots=True)
class Element:
    """One element: where its value lies, and how deep in sequences (0 = top level)."""

    tag: int
    depth: int
    at: int
    length: int


def walk(data: bytes, *, start: int = 0, implicit: bool = False, big: bool = False) -> Iterator[Element]:
    """Elements in file order, those of nested sequences among them, up to the pixel data.

    Args:
        data: bytes of the data set, or the first part of them.
        start: where the first element begins.
        implicit: whether value representations are left out.
        big: whether numbers are big-endian.

    Raises:
        ReadError: sequences are nested deeper than 64 levels.
    """
    order = ">" if big else "<"
    at, size = start, len(data)
    ends: list[int] = []
    while at + 8 <= size:
        while ends and ends[-1] <= at:
            ends.pop()
        group, number = struct.unpack_from(f"{order}HH", data, at)
        tag = group << 16 | number
        value, length, nests = _value(data, at, tag, order, implicit)
        if tag in (_ITEM_END, _SEQUENCE_END):
            if ends:
                ends.pop()
            at = value
            continue
        if tag != _ITEM:
            yield Element(tag, len(ends), value, length)
            if tag in PIXELS and not ends:
                return
        if nests or tag == _ITEM or length == _UNDEFINED:
            ends.append(size + 1 if length == _UNDEFINED else value + length)
            if len(ends) > 2 * MAX_DEPTH:
                raise ReadError("unreadable", f"sequences are nested deeper than {MAX_DEPTH} levels")
            at = value
        else:
            at = value + length


def _value(data: bytes, at: int, tag: int, order: str, implicit: bool) -> tuple[int, int, bool]:
    """Start of the value, its length, and whether it is a sequence."""
    vr = b"" if implicit else data[at + 4 : at + 6]
    if tag >> 16 == 0xFFFE or implicit or not (vr.isalpha() and vr.isupper()):
        start = at + 8
        (length,) = struct.unpack_from(f"{order}I", data, at + 4)
    elif vr in _LONG_VRS:
        start = at + 12
        length = struct.unpack_from(f"{order}I", data, at + 8)[0] if start <= len(data) else 0
    else:
        start = at + 8
        (length,) = struct.unpack_from(f"{order}H", data, at + 6)
        return start, length, False
    item = b"\xff\xfe\xe0\x00" if order == ">" else b"\xfe\xff\x00\xe0"
    nests = tag >> 16 != 0xFFFE and (vr == b"SQ" or (vr in (b"UN", b"") and length >= 8 and data[start : start + 4] == item))
    return start, length, nests


def meta(head: bytes) -> tuple[str, int]:
    """Transfer syntax and the place where the data set begins.

    Args:
        head: the file's first bytes; its meta group must lie inside.
    """
    syntax, at = IMPLICIT, 132
    for element in walk(head, start=132):
        if element.tag >> 16 != 2:
            break
        at = element.at + element.length
        if element.tag == TRANSFER_SYNTAX:
            syntax = head[element.at : at].rstrip(b"\0 ").decode("ascii", "replace")
    return syntax, at


def series_uid(head: bytes) -> str:
    """SeriesInstanceUID, or nothing where the file has none (within its first bytes).

    Raises:
        ReadError: sequences are nested deeper than 64 levels.
    """
    if head[128:132] != b"DICM":
        return ""
    syntax, start = meta(head)
    if syntax == DEFLATED:
        try:
            head, start = zlib.decompressobj(-zlib.MAX_WBITS).decompress(head[start:], len(head)), 0
        except zlib.error:
            return ""
    for element in walk(head, start=start, implicit=syntax == IMPLICIT, big=syntax == BIG_ENDIAN):
        if element.depth == 0 and element.tag == SERIES_UID:
            return head[element.at : element.at + element.length].rstrip(b"\0 ").decode("ascii", "replace")
        if element.depth == 0 and element.tag > SERIES_UID:
            return ""
    return ""
