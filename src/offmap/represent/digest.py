"""SHA-256 of weights, the same wherever they are stored."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


def tensors_sha256(tensors: Mapping[str, Tensor], *, note: str = "") -> str:
    """Digest of names, types, shapes and bytes, in the order of the names.

    Args:
        tensors: on any device.
        note: further text that belongs to the identity (the tree of a module).
    """
    total = hashlib.sha256(note.encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        total.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def file_sha256(path: Path) -> str:
    """Digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
