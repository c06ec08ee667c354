"""Brain slices of two collections for ``klip.py``: prepared, divided with look-alikes together, moved about for training, and spoiled."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from generative import Grey
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from offmap.benchmark.division import divided
from offmap.benchmark.image_set import Item
from offmap.core import duplicates
from offmap.core.types import Source
from offmap.pipeline import recipe as recipes
from offmap.pipeline.stream import Stream
from offmap.simulate.lesions import Planted, TumourRanges, foreground, plant_tumour
from offmap.simulate.tomographic import StarRanges, star

COLLECTIONS = {"brain_mr": "images/brain_mr/no_tumour", "ixi": "images/ixi/healthy"}
SHARES = (0.6, 0.15, 0.25)
"""Of the images of a collection that train the prior, tune settings, and test."""

ALIKE = 0.85
"""Correlation of fingerprints from which slices stay in one part: lower than for copies, so that neighbours in one head do too."""

SEED = 1
PLANT: Mapping[str, Callable[[np.ndarray, np.random.Generator, np.ndarray], Planted]] = MappingProxyType(
    {
        "tumour": lambda pixels, rng, where: plant_tumour(pixels, rng=rng, ranges=TumourRanges(), where=where),
        "star": lambda pixels, rng, where: star(pixels, rng=rng, ranges=StarRanges(), where=where),
    }
)
"""What is planted, with the default ranges of the library."""


@dataclass(frozen=True)
class Collection:
    """Prepared images in [0, 1] and the rows of each part."""

    name: str
    images: Float[Tensor, "n 1 h w"]
    fit: np.ndarray
    tune: np.ndarray
    test: np.ndarray
    groups: int
    """Groups of two or more look-alikes."""


@dataclass(frozen=True)
class Spoiled:
    """Images with something planted, and where."""

    images: Float[Tensor, "n 1 h w"]
    masks: Bool[np.ndarray, "n h w"]


def prepared(files: Sequence[Path], size: int) -> Float[Tensor, "n 1 h w"]:
    """As the recipe ``diffusion`` prepares them, without a random file form."""
    plan = recipes.read("diffusion", {})
    stream = Stream(Grey(size), plan.preparation(size), frozenset({"image"}), jobs=0, use_cache=False)
    return torch.cat([batch.signals["image"] for batch in stream.over([Source(p, str(p)) for p in files])])


def collections(root: Path, size: int) -> dict[str, Collection]:
    """Both collections; slices of one that look like some of the other are left out of the smaller one."""
    images = {}
    for name, folder in COLLECTIONS.items():
        images[name] = prepared(sorted((root / folder).glob("*.jpg")), size)
    prints = {name: np.stack([duplicates.fingerprint(i.numpy()) for i in x]) for name, x in images.items()}
    first, second = COLLECTIONS
    strange = ~(alike(prints[second], prints[first]) >= ALIKE).any(axis=1)
    images[second], prints[second] = images[second][torch.from_numpy(strange)], prints[second][strange]
    return {name: division(name, images[name], prints[name]) for name in COLLECTIONS}


def division(name: str, images: Tensor, prints: np.ndarray) -> Collection:
    """At random, look-alikes together."""
    close = alike(prints, prints) >= ALIKE
    np.fill_diagonal(close, False)
    labels = duplicates.join(len(prints), [(int(a), int(b)) for a, b in np.argwhere(close)])
    groups = [
        np.flatnonzero(labels == label).tolist() for label, count in zip(*np.unique(labels, return_counts=True), strict=True) if count > 1
    ]
    items = [Item(Source(Path(), str(i))) for i in range(len(images))]
    fit, tune, test = divided(items, SHARES, SEED, groups)
    return Collection(name, images, fit, tune, test, len(groups))


def alike(one: np.ndarray, other: np.ndarray) -> Float[np.ndarray, "n m"]:
    """Largest correlation over left-right and upside-down flips."""
    side = duplicates.SIZE
    planes = one.reshape(-1, side, side)
    flips = [planes[:, ::a, ::b].reshape(len(one), -1) @ other.T for a in (1, -1) for b in (1, -1)]
    return np.max(flips, axis=0)


def moved(images: Float[Tensor, "n 1 h w"], copies: int, seed: int) -> Float[Tensor, "m 1 h w"]:
    """Each image ``copies`` times, the first as it is: flipped left to right, turned by up to 10 degrees, scaled by up to 10 %, shifted by
    up to 4 % of its side, and with a gamma from 0.8 to 1.25."""
    rng = torch.Generator().manual_seed(seed)
    found = [images]
    for _ in range(copies - 1):
        n = len(images)
        u = 2 * torch.rand(n, 6, generator=rng) - 1
        turn, scale, flip = u[:, 0] * np.pi / 18, 1 + 0.1 * u[:, 1], torch.where(u[:, 2] < 0, -1.0, 1.0)
        theta = torch.zeros(n, 2, 3)
        theta[:, 0, 0], theta[:, 0, 1] = flip * scale * turn.cos(), -scale * turn.sin()
        theta[:, 1, 0], theta[:, 1, 1] = flip * scale * turn.sin(), scale * turn.cos()
        theta[:, :, 2] = 0.08 * u[:, 3:5]
        grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
        warped = functional.grid_sample(images, grid, mode="bicubic", padding_mode="zeros", align_corners=False).clamp(0, 1)
        found.append(warped ** (1.25 ** u[:, 5]).view(-1, 1, 1, 1))
    return torch.cat(found)


def spoiled(images: Float[Tensor, "n 1 h w"], kind: str, seed: int) -> Spoiled:
    """Each image with one anomaly, its centre in the head and two pixels or more from its border."""
    from scipy import ndimage

    planted = []
    for row, image in enumerate(images.numpy()):
        body = ndimage.binary_fill_holes(foreground(image))
        inner = ndimage.binary_erosion(body, iterations=4)
        rng = np.random.default_rng([seed, row, sorted(PLANT).index(kind)])
        planted.append(PLANT[kind](image, rng, inner if inner.any() else body))
    return Spoiled(torch.from_numpy(np.stack([p.pixels for p in planted])), np.stack([p.mask for p in planted]))


def heads(images: Float[Tensor, "n 1 h w"]) -> Bool[np.ndarray, "n h w"]:
    """The foreground with its holes filled."""
    from scipy import ndimage

    return np.stack([ndimage.binary_fill_holes(foreground(image)) for image in images.numpy()])
