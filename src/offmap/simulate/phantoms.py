"""The demonstration without data: drawn in-distribution, near and far images, as files."""

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Float, Float32, UInt8

from offmap.core.component import nearest
from offmap.core.errors import ConfigError
from offmap.simulate.corruptions import corrupt
from offmap.simulate.lesions import LesionRanges, plant_lesion
from offmap.simulate.phantom_families import FOREIGN, MEDICAL

FAMILIES = (*MEDICAL, *FOREIGN)
"""Names of all families; the first four look like medical images."""

Pixels = Float32[np.ndarray, "c h w"]


def draw(family: str, index: int, *, seed: int, size: int = 256, variant: str = "plain") -> UInt8[np.ndarray, "h w *c"]:
    """One drawn picture, ``(H, W)`` grey or ``(H, W, 3)`` colour; the same arguments always give the same picture.

    Args:
        family: one of ``FAMILIES``.
        index: which picture of the family.
        seed: of the whole collection.
        size: height and width in pixels, at least 64.
        variant: ``plain``, or one of ``VARIANTS``: the same anatomy with something that is strange.

    Raises:
        ConfigError: unknown family or variant, or size too small.
    """
    if family not in FAMILIES:
        raise ConfigError(f"there is no phantom family {family!r}{nearest(family, list(FAMILIES))}. There are: {', '.join(FAMILIES)}")
    if variant != "plain" and variant not in VARIANTS:
        raise ConfigError(f"there is no variant {variant!r}{nearest(variant, list(VARIANTS))}. There are: plain, {', '.join(VARIANTS)}")
    if size < 64:
        raise ConfigError(f"size = {size} of a phantom must be at least 64")
    picture = {**MEDICAL, **FOREIGN}[family](size, np.random.default_rng([seed, zlib.crc32(family.encode()), index]))
    if variant != "plain":
        own = np.random.default_rng([seed, zlib.crc32(f"{family} {variant}".encode()), index])
        picture = _channels_last(VARIANTS[variant](_channels_first(picture), own))
    return np.asarray(np.rint(picture * 255), dtype=np.uint8)


def write_phantoms(
    folder: Path, *, n: int, seed: int, family: str = "brain", near: int | None = None, far: int | None = None, size: int = 256
) -> dict[str, Path]:
    """Write PNG files into ``folder/id``, ``folder/near`` and ``folder/far``.

    ``id``: one family. ``near``: other pictures of it with a lesion, from another scanner, or with another contrast.
    ``far``: the other families in turn, medical-looking and not.

    Args:
        folder: made where it is missing; files of the same name are replaced.
        n: number of in-distribution pictures.
        seed: of the collection.
        family: the in-distribution one, of ``MEDICAL``.
        near, far: numbers of pictures; a quarter of ``n`` each if not given, at least one.
        size: height and width in pixels.

    Returns:
        The folders by ``id``, ``near``, ``far``.

    Raises:
        ConfigError: a number is below 1, or the family is unknown.
    """
    counts = {"id": n, "near": max(1, n // 4) if near is None else near, "far": max(1, n // 4) if far is None else far}
    if min(counts.values()) < 1:
        raise ConfigError(f"phantoms: {counts} must all be at least 1")
    if family not in MEDICAL:
        raise ConfigError(f"phantoms: family = {family!r} must be one of {', '.join(MEDICAL)}{nearest(family, list(MEDICAL))}")
    others = [name for name in FAMILIES if name != family]
    kinds = list(VARIANTS)
    jobs = {
        "id": [(family, i, "plain") for i in range(n)],
        "near": [(family, n + i, kinds[i % len(kinds)]) for i in range(counts["near"])],
        "far": [(others[i % len(others)], i, "plain") for i in range(counts["far"])],
    }
    for part, listed in jobs.items():
        for job in listed:
            _write(folder / part, job, seed, size)
    return {part: folder / part for part in jobs}


def _write(folder: Path, job: tuple[str, int, str], seed: int, size: int) -> None:
    from PIL import Image

    family, index, variant = job
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{family}_{index:05d}{'' if variant == 'plain' else '_' + variant}.png"
    Image.fromarray(draw(family, index, seed=seed, size=size, variant=variant)).save(path)


def _lesion(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    ranges = LesionRanges(radius=(0.07, 0.14), contrast=(0.25, 0.45))
    middle = np.zeros_like(pixels[0], dtype=bool)
    quarter = len(middle) // 4
    middle[quarter:-quarter, quarter:-quarter] = True
    return plant_lesion(pixels, rng=rng, ranges=ranges, where=middle).pixels


def _scanner(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Softer, noisier, unevenly bright."""
    for name in ("blur", "bias_field", "noise"):
        pixels = corrupt(pixels, name, severity=int(rng.integers(2, 4)), seed=int(rng.integers(2**31)))
    return pixels


def _contrast(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Grey: a tone curve in which middle and bright tones change places (two MR weightings). Colour: another stain or light."""
    if pixels.shape[0] == 3:
        exponents = rng.choice([0.6, 1.7], size=3) + rng.uniform(-0.1, 0.1, size=3)
        exponents[rng.integers(3)] = 1.0
        return np.asarray(pixels ** exponents[:, None, None], dtype=np.float32)
    knots = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    tones = np.array([0.0, 0.75, 0.6, 0.4, 0.8]) + np.array([0.0, *rng.normal(0, 0.04, 4)])
    return np.asarray(np.interp(pixels, knots, np.clip(tones, 0.0, 1.0)), dtype=np.float32)


VARIANTS: Mapping[str, Callable[[Pixels, np.random.Generator], Pixels]] = MappingProxyType(
    {"lesion": _lesion, "scanner": _scanner, "contrast": _contrast}
)
"""Near variants by name."""


def _channels_first(picture: Float[np.ndarray, "h w *c"]) -> Pixels:
    return (picture[None] if picture.ndim == 2 else picture.transpose(2, 0, 1)).astype(np.float32)


def _channels_last(pixels: Pixels) -> Float32[np.ndarray, "h w *c"]:
    return pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0)
