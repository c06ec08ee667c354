"""From the file's numbers to [0, 1], by what the numbers mean."""

import dataclasses
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
from jaxtyping import Float32

from offmap.core.errors import ConfigError, ReadError
from offmap.core.types import Image
from offmap.prepare.percentile import check_percentiles, linear, rescale
from offmap.prepare.preparation import Step

HU = MappingProxyType(
    {"wide": (0.0, 2000.0), "soft": (40.0, 400.0), "brain": (40.0, 80.0), "lung": (-600.0, 1500.0), "bone": (400.0, 1800.0)}
)
"""Centre and width of the named CT windows in Hounsfield units."""

PICTURES = ("png", "jpeg", "tiff", "npz", "array")
"""Formats that usually hold finished pictures, not measured numbers."""


@dataclass(frozen=True)
class Window(Step):
    """Numbers to [0, 1], float32; the result does not depend on the other images.

    ``mode="auto"`` looks at what the numbers mean, in this order:

    1. 8-bit pixels 0..255 (PNG, JPEG, TIFF, arrays, 8-bit DICOM such as ultrasound): divided by 255, and pixels of 1 to 7
       bits by their own largest number. The same picture in a 16-bit file, as 0..255 or as multiples of 257, gives the
       same result. Float arrays within [0, 1] stay as they are.
    2. DICOM CT: the Hounsfield window. The default ``wide`` (-1000 to 1000 HU) shows air, soft tissue and bone at low
       contrast, since a window that cuts something off makes the gate blind to it; choose ``brain``, ``lung``, ``soft``
       or ``bone`` where the model behind the gate sees that window.
    3. All else (MR, X-ray and nuclear DICOM; NIfTI, also of CT, since it does not name the modality; 16-bit PNG and
       TIFF): percentiles of the foreground.

    ``mode="file"`` takes the VOI window stored in the file, and what ``auto`` says where there is none.
    ``mode="fixed"`` takes the window below for every file (CT as NIfTI, or numbers with a unit).

    Args:
        mode: ``auto``, ``file`` or ``fixed``.
        ct: named Hounsfield window.
        centre, width: a window of one's own in the units of the pixels, instead of ``ct``; both or neither.
        low, high: percentiles of rule 3.
    """

    mode: Literal["auto", "file", "fixed"] = "auto"
    ct: Literal["wide", "soft", "brain", "lung", "bone"] = "wide"
    centre: float | None = None
    width: float | None = None
    low: float = 0.5
    high: float = 99.5

    reference = "DICOM PS3.3 C.11.2.1.3.2 (LINEAR_EXACT)"

    def __post_init__(self) -> None:
        check_percentiles(self.low, self.high)
        if (self.centre is None) != (self.width is None):
            raise ConfigError(f"window: centre = {self.centre}, width = {self.width}: give both or neither")
        if self.width is not None and not self.width > 0:
            raise ConfigError(f"window: width = {self.width} must be positive")

    def __call__(self, image: Image) -> Image:
        """As ``Step``; refused are ``non_finite`` pixels and images without contrast in the window (``constant``)."""
        if not (np.isfinite(image.pixels.min()) and np.isfinite(image.pixels.max())):
            raise ReadError("non_finite", "the image holds NaN or infinite pixels")
        pixels = self._scaled(image)
        if pixels.min() == pixels.max():
            raise ReadError("constant", f"all pixels have one value after windowing ({self.describe()})")
        return dataclasses.replace(image, pixels=pixels)

    def describe(self) -> str:
        """In words."""
        centre, width = self._hounsfield()
        name = f"{self.ct} " if self.centre is None else ""
        if self.mode == "fixed":
            return f"window {name}of centre {centre:g} and width {width:g} for every file"
        ct = f"CT by the {name}window of centre {centre:g} and width {width:g} HU"
        auto = f"8-bit by 255, {ct}, others by percentiles {self.low:g} to {self.high:g}"
        return auto if self.mode == "auto" else f"window stored in the file; without one {auto}"

    def _hounsfield(self) -> tuple[float, float]:
        return HU[self.ct] if self.centre is None or self.width is None else (self.centre, self.width)

    def _scaled(self, image: Image) -> Float32[np.ndarray, "c *s"]:
        if self.mode == "fixed":
            return _window(image.pixels, *self._hounsfield())
        if self.mode == "file" and image.window is not None:
            return _window(image.pixels, *image.window)
        full = _full_scale(image)
        if full is not None:
            scaled: np.ndarray = np.multiply(image.pixels, np.float32(1.0 / full), dtype=np.float32, casting="unsafe")
            return scaled
        if image.modality == "CT" and image.file_format == "dicom" and image.pixels.shape[0] == 1:
            return _window(image.pixels, *self._hounsfield())
        return rescale(image.pixels, self.low, self.high)


def _window(pixels: np.ndarray, centre: float, width: float) -> Float32[np.ndarray, "c *s"]:
    if not (np.isfinite(centre) and width > 0):
        raise ReadError("bad_photometric", f"the file's window (centre {centre:g}, width {width:g}) is impossible; use mode = 'auto'")
    return linear(pixels, centre - width / 2, centre + width / 2)


def _full_scale(image: Image) -> float | None:
    """The number that stands for white, where the numbers are those of a finished picture; None where they are not."""
    pixels = image.pixels
    if pixels.dtype == np.uint8 and image.file_format != "nifti":
        top = 2.0 ** min(image.bits, 8) - 1
        return top if pixels.max() <= top else 255.0
    if image.file_format not in PICTURES and not (image.file_format == "dicom" and image.bits == 8):
        return None
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 65535):
        return None
    if np.issubdtype(pixels.dtype, np.floating):
        if high <= 1 and image.file_format in ("array", "npz", "tiff"):
            return 1.0
        if bool((pixels != np.rint(pixels)).any()):
            return None
    if high <= 255:
        return 255.0
    return None if bool(np.remainder(pixels, 257).any()) else 65535.0
