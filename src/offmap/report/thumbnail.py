"""Small pictures of images and maps, encoded at once so that no pixel array is kept."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image as Pillow

from offmap.core.errors import SignalError

Pixels = UInt8[np.ndarray, "h w"] | UInt8[np.ndarray, "h w 3"]

SIDE = 240
"""Longest side of a thumbnail, pixels."""
PIXELATED = 64
"""Images up to this side are kept without loss and shown with visible pixels."""


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """An encoded picture.

    Args:
        data: bytes of a PNG or JPEG file.
        width, height: in pixels.
        suffix: ``png`` or ``jpg``.
    """

    data: bytes
    width: int
    height: int
    suffix: str

    @property
    def mime(self) -> str:
        """Its media type."""
        return "image/png" if self.suffix == "png" else "image/jpeg"


def encode(pixels: Pixels) -> Thumbnail:
    """Shrink to ``SIDE`` and encode.

    Args:
        pixels: grey ``(H, W)`` or RGB ``(H, W, 3)``, uint8.

    Raises:
        SignalError: another type or shape.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3) or 0 in pixels.shape:
        raise SignalError(f"a picture must be uint8 of shape (H, W) or (H, W, 3), not {pixels.dtype} {pixels.shape}")
    picture = Pillow.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((SIDE, SIDE), Pillow.Resampling.LANCZOS)
    small = max(pixels.shape[:2]) <= PIXELATED
    buffer = io.BytesIO()
    if small:
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.save(buffer, "JPEG", quality=84, optimize=True)
    return Thumbnail(buffer.getvalue(), picture.width, picture.height, "png" if small else "jpg")


def data_uri(path: Path) -> str:
    """A picture on disk as a ``data:`` address."""
    mime = "image/png" if path.suffix == ".png" else "image/jpeg"
    return f"data:{mime};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
