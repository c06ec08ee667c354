"""How well maps point to what was planted, and scores tell images with it from those without, with bootstrap intervals over slices."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from klip_images import Spoiled, heads
from torch import Tensor

from offmap.benchmark import metrics
from offmap.core.updates import block_sums

BLOCK = 4
"""Side in pixels of the blocks on which maps are judged, 32 of 512 as in the paper."""

VISIBLE = 0.1
"""Change of brightness from which a block counts as odd in the stricter count; blocks that changed less are then left out."""

REPEATS = 2000
CELL = 2
"""Side in pixels of the cells of KLIP's signal."""


@dataclass(frozen=True)
class Truth:
    """Of one set of spoiled images: blocks in the head, those that a mask touches, and those that visibly changed."""

    head: Bool[np.ndarray, "n h w"]
    any: Bool[np.ndarray, "n h w"]
    visible: Bool[np.ndarray, "n h w"]

    @classmethod
    def of(cls, clean: Float[Tensor, "n 1 h w"], odd: Spoiled) -> "Truth":
        change = (odd.images - clean).abs().amax(dim=1)
        return cls(_most(torch.from_numpy(heads(clean))) > 0, _most(torch.from_numpy(odd.masks)) > 0, _most(change) >= VISIBLE)

    def areas(self, blocks: Float[np.ndarray, "n h w"], *, strict: bool) -> Float[np.ndarray, " n"]:
        """AUROC of the blocks of each image; NaN where there is one class only."""
        odd = self.visible if strict else self.any
        own = self.head & ~self.any
        found = []
        for values, negative, positive in zip(blocks, own, odd & self.head, strict=True):
            both = negative.any() and positive.any()
            found.append(metrics.auroc(values[negative], values[positive]) if both else np.nan)
        return np.array(found)


def _most(values: Tensor) -> np.ndarray:
    """Largest value of each block."""
    n, h, w = values.shape
    return values.float().reshape(n, h // BLOCK, BLOCK, w // BLOCK, BLOCK).amax(dim=(2, 4)).numpy()


def judged(pixels: Float[np.ndarray, "n h w"]) -> Float[np.ndarray, "n b c"]:
    """Means over the blocks on which maps are judged."""
    return block_sums(torch.from_numpy(pixels), BLOCK).numpy() / BLOCK**2


@dataclass(frozen=True)
class Reading:
    """How KLIP's signal is read: a window of the sampler's steps as parts of the signal, and a block in pixels."""

    start: int
    stop: int
    block: int

    def blocks(self, maps: Float[Tensor, "n k h w"]) -> Float[Tensor, "n b c"]:
        """Sums over the window and each block."""
        return block_sums(maps[:, self.start : self.stop].double().sum(dim=1), self.block // CELL)

    def score(self, maps: Float[Tensor, "n k h w"], body: Float[Tensor, "n h w"]) -> Float[np.ndarray, " n"]:
        """The largest block that touches the body, as seen in the reconstruction."""
        inside = block_sums((body > 0).double(), self.block // CELL) > 0
        return (self.blocks(maps) * inside).flatten(1).amax(dim=1).numpy()

    def judged(self, maps: Float[Tensor, "n k h w"]) -> Float[np.ndarray, "n b c"]:
        """On the blocks on which maps are judged: the largest of smaller ones, or the larger one that holds it."""
        found, ratio = self.blocks(maps), BLOCK / self.block
        if ratio > 1:
            n, h, w = found.shape
            r = int(ratio)
            return found.reshape(n, h // r, r, w // r, r).amax(dim=(2, 4)).numpy()
        times = int(1 / ratio)
        return found.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2).numpy()


def readings(windows: int) -> list[Reading]:
    """All that the tuner tries: windows of 1, 2, 3, 4, 6, 10 and 20 twentieths of the steps, blocks of 2, 4 and 8 pixels."""
    lengths = sorted({max(1, windows * part // 20) for part in (1, 2, 3, 4, 6, 10, 20)})
    spans = [(a, a + length) for length in lengths for a in range(windows - length + 1)]
    return [Reading(a, b, block) for a, b in spans for block in (2, 4, 8)]


def interval(values: Float[np.ndarray, " b"]) -> tuple[float, float]:
    """95 %."""
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def resamples(count: int) -> Float[np.ndarray, "b n"]:
    """The same for every method, so that differences are paired."""
    return metrics.resampled(count, repeats=REPEATS, rng=np.random.default_rng(0)).astype(np.float64)


def mean_area(areas: Float[np.ndarray, " n"]) -> tuple[float, Float[np.ndarray, " b"]]:
    """Mean over images, and that of each resample."""
    good = np.isfinite(areas)
    draws = resamples(len(areas)) * good
    return float(areas[good].mean()), draws @ np.where(good, areas, 0.0) / draws.sum(axis=1)


def set_area(own: Sequence[float] | np.ndarray, odd: Sequence[float] | np.ndarray) -> tuple[float, Float[np.ndarray, " b"]]:
    """Pooled AUROC of the same slices without and with something planted, and that of each resample of slices."""
    own, odd = np.asarray(own, dtype=np.float64), np.asarray(odd, dtype=np.float64)
    wins = (odd[:, None] > own[None]) + 0.5 * (odd[:, None] == own[None])
    draws = resamples(len(own))
    return float(wins.mean()), np.einsum("bi,ij,bj->b", draws, wins, draws, optimize=True) / len(own) ** 2
