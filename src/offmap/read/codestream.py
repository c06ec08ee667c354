"""Looks into compressed frames without decoding them: size, components, precision, and whether the end is there.

Decoders disagree on damage, and some return wrong pixels for half a frame; a frame without its end marker is never decoded.
"""

import struct
from dataclasses import dataclass

from offmap.core.errors import ReadError

_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})


@dataclass(frozen=True, slots=True)
class Stream:
    """What a codestream says of itself."""

    rows: int
    columns: int
    components: int
    precision: int


def jpeg(frame: bytes) -> Stream:
    """A JPEG or JPEG-LS frame.

    Raises:
        ReadError: ``truncated`` without start of scan or end of image, ``unreadable`` without a frame header.
    """
    if frame[:2] != b"\xff\xd8":
        raise ReadError("unreadable", "a compressed frame does not begin as a JPEG")
    at, found = 2, None
    while at + 4 <= len(frame):
        if frame[at] != 0xFF:
            raise ReadError("unreadable", "the markers of a JPEG frame are damaged")
        marker = frame[at + 1]
        if marker == 0xFF or marker in _STANDALONE:
            at += 1 if marker == 0xFF else 2
            continue
        if marker in _SOF and at + 10 <= len(frame):
            precision, rows, columns, components = struct.unpack_from(">BHHB", frame, at + 4)
            found = Stream(rows, columns, components, precision)
        if marker == 0xDA:
            if frame.rfind(b"\xff\xd9", at) < 0:
                raise ReadError("truncated", "a JPEG frame has no end marker")
            if found is None:
                raise ReadError("unreadable", "a JPEG frame has no frame header")
            return found
        at += 2 + struct.unpack_from(">H", frame, at + 2)[0]
    raise ReadError("truncated", "a JPEG frame ends inside its header")


def jpeg2000(frame: bytes) -> Stream:
    """A JPEG 2000 frame: a raw codestream, or one in a JP2 box.

    Raises:
        ReadError: ``truncated`` where a tile part or the end marker is missing.
    """
    at = frame.find(b"\xff\x4f\xff\x51")
    if at < 0 or len(frame) < at + 44:
        raise ReadError("unreadable" if len(frame) >= 44 else "truncated", "a compressed frame does not begin as a JPEG 2000 codestream")
    x1, y1, x0, y0 = struct.unpack_from(">4I", frame, at + 8)
    components, precision = struct.unpack_from(">HB", frame, at + 40)
    at += 2
    while True:
        marker = frame[at : at + 2]
        if marker == b"\xff\xd9":
            return Stream(y1 - y0, x1 - x0, components, (precision & 0x7F) + 1)
        if len(frame) < at + 12:
            raise ReadError("truncated", "a JPEG 2000 frame has no end marker")
        if marker == b"\xff\x90":
            (length,) = struct.unpack_from(">I", frame, at + 6)
            if not length:
                length = frame.rfind(b"\xff\xd9") - at
            if length < 12 or at + length > len(frame):
                raise ReadError("truncated", "a tile of a JPEG 2000 frame is cut off")
            at += length
        else:
            at += 2 + struct.unpack_from(">H", frame, at + 2)[0]
