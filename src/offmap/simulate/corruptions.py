"""Graded damage of acquisition and storage: five severities each, seeded, on prepared images.

For one image and seed the same random pattern grows with the severity, so that a larger severity is a larger distance.
``spike`` and ``gibbs`` are MONAI's (extra ``[train]``), imported on first use; the others need numpy, scipy and Pillow.
"""

import io
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float, Float32
from PIL import Image as Pillow

from offmap.core.component import nearest
from offmap.core.errors import ConfigError, NotAvailableError, SignalError
from offmap.simulate import artefacts
from offmap.simulate.texture import smooth_field

Pixels = Float[np.ndarray, "c h w"]


@dataclass(frozen=True)
class Corruption:
    """One kind of damage.

    Args:
        cause: what a person would call it.
        unit: of the levels.
        levels: strength at severity 1 to 5.
        apply: ``(pixels, level, rng) -> pixels``, float64 ``(C, H, W)``, clipped afterwards.
        monai: whether it needs MONAI.
        colour: whether it needs three channels.
    """

    cause: str
    unit: str
    levels: tuple[float, float, float, float, float]
    apply: Callable[[Pixels, float, np.random.Generator], Pixels]
    monai: bool = False
    colour: bool = False


def corrupt(pixels: Float[np.ndarray, "c h w"], name: str, *, severity: int, seed: int) -> Float32[np.ndarray, "c h w"]:
    """Damage a prepared image.

    Args:
        pixels: in [0, 1], finite.
        name: one of ``CORRUPTIONS``.
        severity: 1 to 5.
        seed: the same seed gives the same damage.

    Raises:
        ConfigError: unknown name or severity, or a grey image for a damage of colour.
        SignalError: pixels outside [0, 1] or not finite.
        NotAvailableError: MONAI is needed and not installed.
    """
    if name not in CORRUPTIONS:
        raise ConfigError(f"there is no corruption {name!r}{nearest(name, list(CORRUPTIONS))}. There are: {', '.join(CORRUPTIONS)}")
    if severity not in (1, 2, 3, 4, 5):
        raise ConfigError(f"severity = {severity} of {name} must be one of 1 to 5")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):
        raise SignalError(f"{name}: pixels of shape {pixels.shape} run from {low:g} to {high:g}; prepared images in [0, 1] are expected")
    corruption = CORRUPTIONS[name]
    if corruption.colour and len(pixels) != 3:
        raise ConfigError(f"{name} changes colours; pixels of shape {pixels.shape} are grey, (3, H, W) is needed")
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    damaged = corruption.apply(pixels.astype(np.float64), corruption.levels[severity - 1], rng)
    return np.asarray(np.clip(damaged, 0.0, 1.0), dtype=np.float32)


def _noise(x: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    return x + level * rng.standard_normal(x.shape)


def _rician(x: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    """Magnitude of a complex signal with Gaussian noise in both parts: Gudbjartsson and Patz, MRM 34, 1995, eq. 1."""
    return np.asarray(np.hypot(x + level * rng.standard_normal(x.shape), level * rng.standard_normal(x.shape)))


def _blur(x: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    from scipy import ndimage

    sigma = level * min(x.shape[-2:])
    return np.asarray(ndimage.gaussian_filter(x, (0.0, sigma, sigma), mode="nearest"))


def _motion(x: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    """The object jumps up and down while k-space is filled line by line: the lines of each stay get its phase.

    The middle of k-space is measured at rest, so that the object stays where it is.
    """
    height = x.shape[-2]
    line = (np.arange(height) - height // 2) / height
    jumps = np.array([-rng.uniform(0.05, 0.12), -rng.uniform(0.015, 0.04), rng.uniform(0.015, 0.04), rng.uniform(0.05, 0.12)])
    steps = np.array([*rng.uniform(-1.0, 1.0, size=2), 0.0, *rng.uniform(-1.0, 1.0, size=2)])
    position = (steps / np.abs(steps).max())[np.searchsorted(jumps, line)]
    ramp = np.exp(-2j * np.pi * level * height * np.fft.ifftshift(position)[:, None] * np.fft.fftfreq(height)[:, None])
    return np.asarray(np.abs(np.fft.ifft2(np.fft.fft2(x) * ramp)))


def _contrast(x: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    mean = x.mean(axis=(1, 2), keepdims=True)
    return np.asarray(mean + (x - mean) * (1.0 - level))


def _gamma(x: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    return np.asarray(x ** (level if rng.integers(2) else 1.0 / level))


def _bias_field(x: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    """Multiplied by ``exp(level * f)``, ``f`` a random polynomial of degree 3 in both directions with ``max |f| = 1``."""
    vertical, horizontal = (np.linspace(-1.0, 1.0, n) for n in x.shape[-2:])
    coefficients = np.array([[rng.uniform(-1, 1) if 0 < i + j <= 3 else 0.0 for j in range(4)] for i in range(4)])
    field = np.polynomial.legendre.leggrid2d(vertical, horizontal, coefficients)
    gain = np.exp(level * field / max(float(np.abs(field).max()), 1e-12))
    return np.asarray(x * gain)


def _downsampling(x: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    height, width = x.shape[-2:]
    small = (max(1, round(width / level)), max(1, round(height / level)))
    planes = [Pillow.fromarray(c.astype(np.float32)).resize(small, Pillow.Resampling.BILINEAR) for c in x]
    return np.stack([np.asarray(p.resize((width, height), Pillow.Resampling.BILINEAR), dtype=np.float64) for p in planes])


def _jpeg(x: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    picture = np.rint(x * 255).astype(np.uint8)
    grey = picture.shape[0] == 1
    file = io.BytesIO()
    Pillow.fromarray(picture[0] if grey else np.ascontiguousarray(picture.transpose(1, 2, 0))).save(file, "JPEG", quality=int(level))
    read = np.asarray(Pillow.open(file), dtype=np.float64) / 255
    return read[None] if grey else read.transpose(2, 0, 1)


def _stripes(x: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    """Rows of a detector with gains of their own."""
    return x * (1.0 + level * smooth_field((x.shape[-2],), 0.7, rng)[:, None])


def _spike(x: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    height, width = x.shape[-2:]
    distance = rng.uniform(0.08, 0.25, size=2) * rng.choice([-1, 1], size=2)
    place = (int(height // 2 + distance[0] * height), int(width // 2 + distance[1] * width))
    spike = _monai("spike").KSpaceSpikeNoise(loc=place, k_intensity=float(np.log(level * height * width)))
    return np.asarray(spike(x), dtype=np.float64)


def _gibbs(x: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    return np.asarray(_monai("gibbs").GibbsNoise(alpha=level)(x), dtype=np.float64)


def _monai(name: str) -> Any:
    try:
        from monai import transforms
    except ImportError as error:
        raise NotAvailableError(f"the corruption {name!r} needs MONAI: pip install 'offmap[train]'") from error
    return transforms


CORRUPTIONS: Mapping[str, Corruption] = MappingProxyType(
    {
        "noise": Corruption("noise", "standard deviation", (0.02, 0.04, 0.07, 0.11, 0.16), _noise),
        "rician_noise": Corruption("noise", "standard deviation of each part", (0.02, 0.04, 0.07, 0.11, 0.16), _rician),
        "blur": Corruption("blur", "sigma, share of the shorter side", (0.004, 0.007, 0.011, 0.016, 0.022), _blur),
        "motion": Corruption("motion", "largest shift, share of the height", (0.005, 0.01, 0.016, 0.024, 0.034), _motion),
        "contrast": Corruption("contrast", "share of the contrast lost", (0.15, 0.3, 0.45, 0.6, 0.75), _contrast),
        "gamma": Corruption("contrast", "exponent or its inverse", (1.2, 1.45, 1.75, 2.2, 2.8), _gamma),
        "bias_field": Corruption("uneven brightness", "largest log gain", (0.1, 0.2, 0.35, 0.5, 0.7), _bias_field),
        "downsampling": Corruption("resolution", "factor", (1.5, 2.0, 3.0, 4.0, 6.0), _downsampling),
        "jpeg": Corruption("compression", "libjpeg quality", (50.0, 30.0, 18.0, 10.0, 5.0), _jpeg),
        "stripes": Corruption("detector", "standard deviation of a row's gain", (0.02, 0.04, 0.07, 0.11, 0.16), _stripes),
        "spike": Corruption("k-space artefact", "amplitude of the wave", (0.03, 0.06, 0.1, 0.15, 0.22), _spike, monai=True),
        "gibbs": Corruption("k-space artefact", "share of k-space cut off", (0.4, 0.5, 0.6, 0.7, 0.8), _gibbs, monai=True),
        "ghosting": Corruption("motion", "amplitude of the lines' pulsation", (0.08, 0.16, 0.28, 0.42, 0.6), artefacts.ghosting),
        "crop": Corruption("field of view", "share of each side lost", (0.04, 0.08, 0.13, 0.19, 0.26), artefacts.crop),
        "rotation": Corruption("position", "degrees", (2.0, 4.0, 8.0, 15.0, 30.0), artefacts.rotation),
        "stain_shift": Corruption("stain", "share of a stain", (0.06, 0.12, 0.2, 0.3, 0.42), artefacts.stain_shift, colour=True),
        "overlay": Corruption("burnt-in marks", "number of marks", (1.0, 2.0, 3.0, 4.0, 5.0), artefacts.overlay),
    }
)
"""All corruptions by name."""
