"""In-distribution images, and copies of them that were damaged on purpose: graded corruptions, drawn lesions, pasted pieces."""

import dataclasses
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from offmap.core.errors import DataError
from offmap.core.types import Image, Source
from offmap.prepare.preparation import Preparation
from offmap.read.load import load
from offmap.simulate.anomalies import ANOMALIES
from offmap.simulate.corruptions import corrupt
from offmap.simulate.lesions import LesionRanges, plant_lesion

FAINT = LesionRanges(radius=(0.03, 0.08), contrast=(0.06, 0.2))
LESIONS = {"lesion_faint": FAINT, "lesion": LesionRanges()}
LOCAL = (*LESIONS, *ANOMALIES)
SEVERITIES = (1, 3)
WHOLE = ("noise", "rician_noise", "blur", "motion", "contrast", "gamma", "bias_field", "downsampling", "jpeg", "stripes")
"""Corruptions on which the default was chosen; later ones are left out, so that its table stays as it was."""
GLOBAL = tuple(f"{name}.{severity}" for name in WHOLE for severity in SEVERITIES)
EARLY = ("window", "crop")
"""Steps before the damage; those that change the size of the image come after it, as they would with a damaged file."""


def halves(preparation: Preparation) -> tuple[Preparation, Preparation]:
    """The steps before the damage, and those after it."""
    at = next((i for i, step in enumerate(preparation.steps) if step.method() not in EARLY), len(preparation.steps))
    return Preparation(preparation.steps[:at]), Preparation(preparation.steps[at:])


def one(path: Path) -> Image:
    """The image of a file.

    Raises:
        DataError: it cannot be read.
    """
    outcome = next(iter(load(Source(path, str(path)))))
    if not isinstance(outcome, Image):
        raise DataError(f"{path}: cannot be read; a benchmark needs all of its images")
    return outcome


def damaged(files: Sequence[Path], kind: str, early: Preparation) -> Iterator[Image]:
    """Each image with one damage; the same image and kind always give the same damage."""
    images = [early.apply(one(path)) for path in files]
    for i, image in enumerate(images):
        seed = zlib.crc32(f"{kind}:{image.digest}".encode())
        if kind in GLOBAL:
            name, severity = kind.rsplit(".", 1)
            pixels = corrupt(image.pixels, name, severity=int(severity), seed=seed)
        else:
            pixels = _local(image, images[(i * 7 + 11) % len(images)], kind, np.random.default_rng(seed))
        yield dataclasses.replace(image, pixels=np.ascontiguousarray(pixels), digest="")


def undamaged(files: Sequence[Path], early: Preparation) -> Iterator[Image]:
    """Each image as it is, on the same way."""
    return (early.apply(one(path)) for path in files)


def _local(image: Image, other: Image, kind: str, rng: np.random.Generator) -> np.ndarray:
    if kind in LESIONS:
        return plant_lesion(image.pixels, rng=rng, ranges=LESIONS[kind]).pixels
    return partial(ANOMALIES[kind], rng=rng)(image.pixels, _fitted(other, image)).pixels


def _fitted(other: Image, image: Image) -> np.ndarray:
    """The other image with the shape of this one."""
    from offmap.prepare.resampler import resample

    pixels = resample(other.pixels, image.spatial)
    if pixels.shape[0] == image.pixels.shape[0]:
        return pixels
    return np.repeat(pixels.mean(axis=0, keepdims=True), image.pixels.shape[0], axis=0)
