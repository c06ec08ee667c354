"""Tensors of one ``.safetensors`` file, checked before any of it is trusted.

The format (huggingface/safetensors): 8 bytes little-endian length, a JSON header of that length, the data.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from offmap.core.errors import BundleError
from offmap.core.manifest import DTYPES, strict_json

HEADER_LIMIT = 16 * 2**20
"""Bytes that the header may have."""


def kind_of(tensor: Tensor) -> list[str | int]:
    """``[dtype, *shape]`` as a manifest states it."""
    return [str(tensor.dtype).removeprefix("torch."), *tensor.shape]


def parse(content: bytearray, expected: Mapping[str, list[Any]], where: str) -> dict[str, Tensor]:
    """Tensors over the memory of ``content``, without a copy.

    Args:
        content: the whole file.
        expected: ``[dtype, *shape]`` of each tensor, from the manifest.
        where: path of the file, for messages.

    Raises:
        BundleError: not this format, tensors that overlap, leave gaps or reach outside, others than expected, or not finite.
    """
    header, start = _header(content, where)
    if set(header) != set(expected):
        odd = sorted(set(header) ^ set(expected))[0]
        raise BundleError(f"{where} and the manifest differ in the tensor {odd[:120]!r}; the gate is damaged or was not written by offmap")
    spans = sorted((_span(entry, expected[name], f"{where}: tensor {name[:120]!r}"), name) for name, entry in header.items())
    position = 0
    for (low, high), name in spans:
        if low != position:
            raise BundleError(f"{where}: tensor {name[:120]!r} overlaps another or leaves a gap; the file is damaged or forged")
        position = high
    if position != len(content) - start:
        raise BundleError(f"{where} has {len(content) - start} bytes of data, its header describes {position}; it is truncated or forged")
    return {name: _tensor(content, start + low, expected[name], f"{where}: tensor {name[:120]!r}") for (low, _), name in spans}


def _header(content: bytearray, where: str) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > min(HEADER_LIMIT, len(content) - 8) or length % 8:
        what = (
            "it begins like a Python pickle, which offmap never opens" if content[:1] == b"\x80" else "its header has an impossible length"
        )
        raise BundleError(f"{where} is not a safetensors file: {what}")
    header = strict_json(bytes(content[8 : 8 + length]), where)
    header.pop("__metadata__", None)
    return header, 8 + length


def _span(entry: Any, expected: list[Any], what: str) -> tuple[int, int]:
    """Offsets of a tensor whose dtype, shape and size are as expected."""
    dtype, *shape = expected
    code, width = DTYPES[dtype]
    if not isinstance(entry, dict) or entry.get("dtype") != code or entry.get("shape") != shape:
        raise BundleError(
            f"{what} is not {dtype} of shape {tuple(shape)} as the manifest says; the gate is damaged or was not written by offmap"
        )
    offsets = entry.get("data_offsets")
    if not isinstance(offsets, list) or len(offsets) != 2 or any(type(o) is not int or o < 0 for o in offsets):
        raise BundleError(f"{what} has no valid offsets; the file is damaged or forged")
    low, high = offsets
    if high - low != width * math.prod(shape) or low % width:
        raise BundleError(f"{what} has offsets that do not fit its shape {tuple(shape)}; the file is damaged or forged")
    return low, high


def _tensor(content: bytearray, start: int, expected: list[Any], what: str) -> Tensor:
    name, *shape = expected
    dtype: torch.dtype = getattr(torch, name)
    count = math.prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    if dtype == torch.bool and max(content[start : start + count]) > 1:
        raise BundleError(f"{what} holds bytes that are neither true nor false; the file is damaged or forged")
    tensor = torch.frombuffer(content, dtype=dtype, count=count, offset=start).reshape(shape)
    if dtype.is_floating_point and not bool(torch.isfinite(tensor).all()):
        raise BundleError(f"{what} holds NaN or infinity; such a gate cannot score. Fit it anew")
    return tensor
