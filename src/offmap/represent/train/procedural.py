"""Images drawn by a program, with the textures of medical modalities that a training pool may lack. Seeded, nothing copied."""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float
from scipy import ndimage, special

Grey = Float[np.ndarray, "h w"]
Picture = Float[np.ndarray, "c h w"]


def _unit(values: Grey) -> Grey:
    low, high = float(values.min()), float(values.max())
    return ((values - low) / (high - low if high > low else 1.0)).astype(np.float32)


def _grid(size: int) -> tuple[Grey, Grey]:
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    return np.broadcast_to(axis[:, None], (size, size)), np.broadcast_to(axis[None], (size, size))


def _ellipse(size: int, rng: np.random.Generator, low: float, high: float) -> Grey:
    """Normalised radius of a random ellipse: below 1 inside; half-axes between ``low`` and ``high`` of half the image."""
    y, x = _grid(size)
    cy, cx, angle = *rng.uniform(-0.5, 0.5, 2), rng.uniform(0, np.pi)
    u, v = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle), (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
    a, b = rng.uniform(low, high, 2)
    return np.asarray(np.sqrt((u / a) ** 2 + (v / b) ** 2), dtype=np.float32)


def fractal(size: int, rng: np.random.Generator) -> Picture:
    """Noise with the power spectrum ``1/f^b``, b from 1 to 4: as natural textures and mammograms have it."""
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
    radius = np.hypot(fy, fx)
    radius[0, 0] = 1.0
    wave = rng.normal(size=radius.shape) + 1j * rng.normal(size=radius.shape)
    return _unit(np.fft.irfft2(wave * radius ** (-rng.uniform(1, 4) / 2), s=(size, size)))[None]


def dead_leaves(size: int, rng: np.random.Generator) -> Picture:
    """Discs that hide one another, radii from a power law (Lee, Mumford and Huang, IJCV 2001): edges and occlusions of all sizes."""
    y, x = np.mgrid[:size, :size]
    image = np.full((3, size, size), rng.uniform(), dtype=np.float32)
    colour = rng.uniform() < 0.5
    for radius in size / 2 / np.sqrt(rng.uniform(1, 400, 150)):
        cy, cx = rng.uniform(0, size, 2)
        inside = (y - cy) ** 2 + (x - cx) ** 2 < radius**2
        image[:, inside] = (rng.uniform(size=3) if colour else np.full(3, rng.uniform()))[:, None]
    return image if colour else image[:1]


def speckle(size: int, rng: np.random.Generator) -> Picture:
    """Ultrasound: log-compressed Rayleigh speckle over layers and dark cysts, seen in a fan."""
    tissue = 0.3 + 0.7 * _unit(ndimage.gaussian_filter(rng.normal(size=(size, size)), (size / 20, size / 5)))
    for _ in range(rng.integers(0, 4)):
        tissue = np.where(_ellipse(size, rng, 0.1, 0.4) < 1, rng.uniform(0.02, 1.5), tissue)
    blur = (rng.uniform(0.5, 1.2), rng.uniform(1, 3))
    field = ndimage.gaussian_filter(rng.normal(size=(size, size)), blur) + 1j * ndimage.gaussian_filter(rng.normal(size=(size, size)), blur)
    image = _unit(np.log(np.abs(field) * tissue + 1e-3))
    y, x = _grid(size)
    fan = np.abs(np.arctan2(x, y + 1.3)) < rng.uniform(0.4, 0.9)
    return (image * fan if rng.uniform() < 0.5 else image)[None].astype(np.float32)


def tissue(size: int, rng: np.random.Generator) -> Picture:
    """Stained sections: dark nuclei and pink fibres by Beer-Lambert absorption of two dyes."""
    density = rng.uniform(0.002, 0.01)
    seeds = ndimage.gaussian_filter((rng.uniform(size=(size, size)) < density).astype(np.float32), rng.uniform(1.5, 4))
    nuclei = (seeds > np.quantile(seeds, rng.uniform(0.75, 0.93))).astype(np.float32)
    fibres = _unit(ndimage.gaussian_filter(rng.normal(size=(size, size)), (rng.uniform(1, 3), rng.uniform(3, 12))))
    dyes = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]], dtype=np.float32) + rng.normal(0, 0.05, (2, 3)).astype(np.float32)
    amount = np.stack([ndimage.gaussian_filter(nuclei, 0.7) * rng.uniform(0.8, 2), fibres * rng.uniform(0.3, 1)])
    return np.asarray(np.exp(-np.tensordot(np.abs(dyes), amount, axes=(0, 0))), dtype=np.float32)


def lesion(size: int, rng: np.random.Generator) -> Picture:
    """Dermoscopy: a pigmented spot with an uneven edge on skin, hairs, dark corners."""
    skin = np.array([0.85, 0.65, 0.55]) + rng.normal(0, 0.06, 3)
    spot = np.array([0.45, 0.28, 0.2]) * rng.uniform(0.5, 1.4)
    uneven = fractal(size, rng)[0]
    edge = _ellipse(size, rng, 0.25, 0.7) + (uneven - 0.5) * rng.uniform(0, 0.8)
    share = special.expit((1 - edge) * rng.uniform(5, 40))
    image = skin[:, None, None] * (0.9 + 0.2 * uneven) * (1 - share) + spot[:, None, None] * (0.6 + 0.8 * uneven) * share
    y, x = _grid(size)
    for _ in range(rng.integers(0, 12)):
        bend, tilt, shift = rng.normal(0, 0.5), rng.normal(0, 1), rng.uniform(-1, 1)
        image = np.where(np.abs(x - shift - tilt * y - bend * y * y) < 1.2 / size, 0.1, image)
    image = image * (np.hypot(y, x) < rng.uniform(1.0, 1.5))
    return np.asarray(np.clip(image, 0, 1), dtype=np.float32)


def phantom(size: int, rng: np.random.Generator) -> Picture:
    """A body in section: nested ellipses of different attenuation or relaxation, with noise."""
    image = np.zeros((size, size), dtype=np.float32)
    y, x = _grid(size)
    body = np.hypot(y / rng.uniform(0.6, 0.95), x / rng.uniform(0.6, 0.95)) < 1
    image[body] = rng.uniform(0.2, 0.7)
    for _ in range(rng.integers(3, 14)):
        image = np.where((_ellipse(size, rng, 0.05, 0.45) < 1) & body, rng.uniform(0, 1), image)
    texture = ndimage.gaussian_filter(rng.normal(size=(size, size)), rng.uniform(0, 2)) * rng.uniform(0, 0.08)
    return np.clip(ndimage.gaussian_filter(image, rng.uniform(0, 1.5)) + texture, 0, 1)[None].astype(np.float32)


def cells(size: int, rng: np.random.Generator) -> Picture:
    """A mosaic of cells with bright or dark walls (Voronoi cells of random points)."""
    points = rng.uniform(0, size, (int(rng.integers(15, 120)), 2))
    y, x = np.mgrid[:size, :size]
    distances = np.partition((y[..., None] - points[:, 0]) ** 2 + (x[..., None] - points[:, 1]) ** 2, 1, axis=-1)[..., :2]
    wall = np.sqrt(distances[..., 1]) - np.sqrt(distances[..., 0])
    image = _unit(np.tanh(wall / rng.uniform(1, 6)) + 0.2 * fractal(size, rng)[0])
    return (image if rng.uniform() < 0.5 else 1 - image)[None]


def waves(size: int, rng: np.random.Generator) -> Picture:
    """Sums of gratings: fibres, grids, ringing."""
    y, x = _grid(size)
    parts = [
        np.sin(np.pi * rng.uniform(2, size / 6) * (x * np.cos(a) + y * np.sin(a)) + rng.uniform(0, 6.3))
        for a in rng.uniform(0, np.pi, rng.integers(1, 5))
    ]
    return _unit(np.sum(parts, axis=0))[None]


KINDS: Mapping[str, Callable[[int, np.random.Generator], Picture]] = {
    "dead_leaves": dead_leaves,
    "fractal": fractal,
    "tissue": tissue,
    "speckle": speckle,
    "lesion": lesion,
    "phantom": phantom,
    "cells": cells,
    "waves": waves,
}
"""All kinds; each gives ``(C, size, size)`` in [0, 1], C = 1 or 3."""


def draw(count: int, size: int, rng: np.random.Generator) -> list[Picture]:
    """``count`` pictures, the kinds in turn."""
    kinds = list(KINDS.values())
    return [kinds[i % len(kinds)](size, rng) for i in range(count)]
