"""How images travel from a worker process to its parent: a JSON header and raw bytes, never a pickle.

A decoder that a hostile file has taken over can then send wrong numbers about its own file, and nothing else.
"""

import json
import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from offmap.core.errors import ReadError
from offmap.core.types import REASONS, Frame, Image, NotAssessed, Outcome
from offmap.read.parts import Known

Message = tuple[dict[str, Any], list[np.ndarray]]
"""A JSON header and arrays of numbers."""

_HEAD = struct.Struct("<IQ")
_MAX_HEADER = 16 << 20
_MAX_ARRAYS = 64


def pack(outcome: Outcome | Known) -> Message:
    """An outcome as a message; ``unpack`` gives it back."""
    if isinstance(outcome, Known):
        return {"item": outcome.item, "digest": outcome.digest}, []
    if isinstance(outcome, NotAssessed):
        return {"item": outcome.item, "reason": outcome.reason, "detail": outcome.detail}, []
    header = {
        "item": outcome.item,
        "frame": [list(outcome.frame.shape), list(outcome.frame.low), list(outcome.frame.high)],
        "spacing": None if outcome.spacing is None else list(outcome.spacing),
        "bits": outcome.bits,
        "file_format": outcome.file_format,
        "modality": outcome.modality,
        "window": None if outcome.window is None else list(outcome.window),
        "group": outcome.group,
        "digest": outcome.digest,
        "meta": dict(outcome.meta),
        "identifiers": dict(outcome.identifiers),
    }
    return header, [outcome.pixels] if outcome.mask is None else [outcome.pixels, outcome.mask]


def unpack(message: Message) -> Outcome | Known:
    """The outcome that was packed.

    Raises:
        ReadError: reason ``crashed``, when the header is not one that ``pack`` writes.
    """
    header, arrays = message
    try:
        if "reason" in header:
            reason = header["reason"] if header["reason"] in REASONS else "failed"
            return NotAssessed(str(header["item"]), reason, str(header["detail"]))
        if not arrays:
            return Known(str(header["item"]), str(header["digest"]))
        shape, low, high = header["frame"]
        frame = Frame(tuple(map(int, shape)), tuple(map(float, low)), tuple(map(float, high)))
        return Image(
            arrays[0],
            str(header["item"]),
            frame,
            spacing=None if header["spacing"] is None else tuple(map(float, header["spacing"])),
            bits=int(header["bits"]),
            file_format=str(header["file_format"]),
            modality=str(header["modality"]),
            window=None if header["window"] is None else (float(header["window"][0]), float(header["window"][1])),
            group=str(header["group"]),
            digest=str(header["digest"]),
            meta={str(k): str(v) for k, v in header["meta"].items()},
            identifiers={str(k): str(v) for k, v in header["identifiers"].items()},
            mask=arrays[1] if len(arrays) > 1 else None,
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ReadError("crashed", "the reader's process sent a message that makes no sense") from error


def encode(envelope: dict[str, Any], message: Message | None) -> list[bytes | memoryview]:
    """Bytes of one message: lengths, JSON, then each array.

    Args:
        envelope: what the transport needs to know.
        message: header and arrays; None for an envelope alone.
    """
    header, arrays = message if message is not None else ({}, [])
    dense = [np.ascontiguousarray(a, a.dtype.newbyteorder("=")) for a in arrays]
    kinds = [[a.dtype.str, list(a.shape)] for a in dense]
    text = json.dumps({**envelope, "header": header, "arrays": kinds}, ensure_ascii=False, separators=(",", ":"))
    raw = text.encode("utf-8", "surrogatepass")
    bodies = [_raw(a) for a in dense]
    return [_HEAD.pack(len(raw), sum(len(b) for b in bodies)), raw, *bodies]


def decode(read_into: Callable[[memoryview], bool], *, limit: int) -> tuple[dict[str, Any], Message] | None:
    """Read one message.

    Args:
        read_into: fills a buffer from the stream; False at its end.
        limit: largest number of bytes that its arrays may have.

    Returns:
        The envelope and the message, or None at the end of the stream.

    Raises:
        ValueError: the bytes are no message.
    """
    head = bytearray(_HEAD.size)
    if not read_into(memoryview(head)):
        return None
    header_size, body_size = _HEAD.unpack(head)
    if header_size > _MAX_HEADER or body_size > limit:
        raise ValueError("a message is larger than the limit")
    raw = bytearray(header_size)
    if not read_into(memoryview(raw)):
        return None
    envelope = json.loads(raw.decode("utf-8", "surrogatepass"))
    header, kinds = envelope.pop("header"), envelope.pop("arrays")
    if not isinstance(header, dict) or not isinstance(kinds, list) or len(kinds) > _MAX_ARRAYS:
        raise ValueError("a message has a malformed header")
    arrays = [_empty(kind, body_size) for kind in kinds]
    if sum(a.nbytes for a in arrays) != body_size:
        raise ValueError("a message announces other arrays than it holds")
    for array in arrays:
        if array.nbytes and not read_into(_raw(array)):
            return None
    return envelope, (header, arrays)


def _raw(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _empty(kind: Any, limit: int) -> np.ndarray:
    name, shape = kind
    dtype = np.dtype(str(name))
    if dtype.kind not in "buif" or any(not isinstance(n, int) or n < 0 for n in shape) or math.prod(shape) * dtype.itemsize > limit:
        raise ValueError("a message announces an impossible array")
    return np.empty(tuple(shape), dtype)
