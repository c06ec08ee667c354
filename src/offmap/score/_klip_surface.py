"""How well every block size and window of KLIP finds drawn artefacts, from signals that were sampled once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.core.updates import block_sums

By = Literal["both", "images", "blocks"]
Reduction = Literal["max", "p95", "sum"]
CHUNK = 16
"""Images whose windows are held at once."""


@dataclass(frozen=True, eq=False)
class Surface:
    """AUROC by block size and window, OOD positive, ties by half.

    Args:
        cells: sides of blocks, in cells.
        windows: first and last-but-one of the signal's ``count`` windows, half-open.
        count: K, windows of the signal.
        images: of image scores, images with an artefact against clean ones.
        blocks: of the blocks of one image that touch the body, those that the artefact touches against the others; mean over images.
    """

    cells: tuple[int, ...]
    windows: tuple[tuple[int, int], ...]
    count: int
    images: Float64[Tensor, "b w"]
    blocks: Float64[Tensor, "b w"]

    def values(self, by: By) -> Float64[Tensor, "b w"]:
        """What is to be large: one of the two, or their mean."""
        return {"images": self.images, "blocks": self.blocks, "both": (self.images + self.blocks) / 2}[by]

    def best(self, by: By) -> tuple[int, int]:
        """Places of block and window of the largest value; of equal ones the longest window, then the smallest block.

        Raises:
            SignalError: no setting has a value.
        """
        values = self.values(by)
        found = values[torch.isfinite(values)]
        if len(found) == 0:
            raise SignalError("klip: no image has both blocks with and without an artefact; draw other artefacts, or use smaller cells")
        ties = (values >= found.max() - 1e-9).nonzero().tolist()
        b, w = min(ties, key=lambda at: (self.windows[at[1]][0] - self.windows[at[1]][1], self.cells[at[0]], at[1]))
        return b, w

    def shares(self, w: int) -> tuple[float, float]:
        """A window as shares of the steps."""
        start, stop = self.windows[w]
        return start / self.count, stop / self.count


@dataclass(frozen=True, eq=False)
class Rescored:
    """Every image under every setting: what any choice of images needs to make a surface.

    Args:
        cells, windows, count: as of ``Surface``.
        clean: scores of clean images.
        odd: scores of the same images with an artefact each.
        areas: AUROC inside each odd image; NaN where its blocks are all of one kind.
    """

    cells: tuple[int, ...]
    windows: tuple[tuple[int, int], ...]
    count: int
    clean: Float64[Tensor, "b w n"]
    odd: Float64[Tensor, "b w n"]
    areas: Float64[Tensor, "b w n"]

    def surface(self, rows: Int64[Tensor, " r"] | None = None) -> Surface:
        """Of some of the images; all when None."""
        at = torch.arange(self.clean.shape[2]) if rows is None else rows
        return Surface(
            self.cells, self.windows, self.count, area_under(self.clean[..., at], self.odd[..., at]), self.areas[..., at].nanmean(dim=2)
        )

    def interval(self, b: int, w: int, by: By, rows: Int64[Tensor, " r"], *, seed: int = 0, repeats: int = 500) -> tuple[float, float]:
        """Bootstrap interval (95 %) of one setting's value; an image is drawn together with its artefact."""
        generator = torch.Generator().manual_seed(seed)
        drawn = rows[torch.randint(len(rows), (repeats, len(rows)), generator=generator)]
        images = area_under(self.clean[b, w][drawn], self.odd[b, w][drawn])
        blocks = self.areas[b, w][drawn].nanmean(dim=1)
        values = {"images": images, "blocks": blocks, "both": (images + blocks) / 2}[by]
        low, high = values[torch.isfinite(values)].quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        return low, high


def rescore(
    clean: Float[Tensor, "n k *c"],
    odd: Float[Tensor, "n k *c"],
    masks: Bool[Tensor, "n *c"],
    *,
    body: Float[Tensor, "n *c"] | None,
    odd_body: Float[Tensor, "n *c"] | None,
    reduction: Reduction = "max",
) -> Rescored:
    """Score clean and odd images under all blocks and windows.

    Args:
        clean, odd: ``klip.map`` or ``klip.relative.map`` of the same images without and with an artefact; the sum over a window, which
            orders as the mean does.
        masks: cells that the artefact touches.
        body, odd_body: share of body in each cell; only blocks that touch it count. None: all count.
        reduction: of blocks to a score, as of ``KLIP``.

    Raises:
        SignalError: grids differ, or there are fewer than two images.
    """
    if clean.shape != odd.shape or masks.shape != (len(clean), *clean.shape[2:]) or len(clean) < 2:
        raise SignalError(
            f"klip: clean and odd maps of shapes {tuple(clean.shape)} and {tuple(odd.shape)} and masks of {tuple(masks.shape)} must be "
            "of the same two or more images"
        )
    count, sides = int(clean.shape[1]), tuple(clean.shape[2:])
    cells = tuple(c for c in range(1, min(sides) // 2 + 1) if not any(side % c for side in sides))
    windows = tuple((i, j) for i in range(count) for j in range(i + 1, count + 1))
    if not cells:
        raise SignalError(f"klip: a grid of {sides} cells has no blocks to choose from; use smaller cells")
    scored = []
    for c in cells:
        usual = [_scores(m, _touching(b, c), c, windows, reduction) for m, b in _few(clean, body)]
        strange = [_scores(m, _touching(b, c), c, windows, reduction) for m, b in _few(odd, odd_body)]
        labels = block_sums(masks.double(), c) > 0
        inside = [
            _areas(odd[i : i + 1], _touching(None if odd_body is None else odd_body[i : i + 1], c), labels[i], c, windows)
            for i in range(len(odd))
        ]
        scored.append((torch.cat(usual, dim=1), torch.cat(strange, dim=1), torch.stack(inside, dim=1)))
    return Rescored(cells, windows, count, *(torch.stack(part) for part in zip(*scored, strict=True)))


def area_under(usual: Float64[Tensor, "*a m"], strange: Float64[Tensor, "*a p"]) -> Float64[Tensor, "*a"]:
    """Share of pairs in which the strange number is larger, ties by half."""
    ordered, values = usual.sort(dim=-1).values.contiguous(), strange.contiguous()
    below = torch.searchsorted(ordered, values) + torch.searchsorted(ordered, values, right=True)
    return below.double().mean(dim=-1) / (2 * usual.shape[-1])


def _few(maps: Tensor, body: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
    starts = range(0, len(maps), CHUNK)
    return [(maps[i : i + CHUNK], None if body is None else body[i : i + CHUNK]) for i in starts]


def _touching(body: Float[Tensor, "n *c"] | None, cells: int) -> Bool[Tensor, "n *b"] | None:
    return None if body is None else block_sums((body > 0).double(), cells) > 0


def _blocks(maps: Float[Tensor, "n k *c"], cells: int, windows: Sequence[tuple[int, int]]) -> Float64[Tensor, "w n b"]:
    """Blocks of each window, as differences of running sums over time."""
    small = block_sums(maps.double().flatten(0, 1), cells).unflatten(0, maps.shape[:2]).flatten(2)
    running = torch.cat([torch.zeros_like(small[:, :1]), small.cumsum(dim=1)], dim=1).transpose(0, 1)
    starts, stops = (torch.tensor([window[i] for window in windows], device=maps.device) for i in (0, 1))
    return running[stops] - running[starts]


def _scores(
    maps: Float[Tensor, "n k *c"],
    body: Bool[Tensor, "n *b"] | None,
    cells: int,
    windows: Sequence[tuple[int, int]],
    reduction: Reduction,
) -> Float64[Tensor, "w n"]:
    if reduction not in ("max", "p95", "sum"):
        raise ConfigError(f"klip: reduction = {reduction!r} must be one of max, p95, sum")
    blocks = _blocks(maps, cells, windows)
    if body is not None:
        blocks = torch.where(body.flatten(1), blocks, torch.nan if reduction == "p95" else 0.0)
    if reduction == "p95":
        return blocks.nanquantile(0.95, dim=2)
    return blocks.amax(dim=2) if reduction == "max" else blocks.sum(dim=2)


def _areas(
    maps: Float[Tensor, "1 k *c"],
    body: Bool[Tensor, "1 *b"] | None,
    labels: Bool[Tensor, "*b"],
    cells: int,
    windows: Sequence[tuple[int, int]],
) -> Float64[Tensor, " w"]:
    """AUROC of the blocks of one image in each window."""
    blocks, touched = _blocks(maps, cells, windows)[:, 0], labels.flatten()
    counted = torch.ones_like(touched) if body is None else body.flatten()
    usual, strange = blocks[:, counted & ~touched], blocks[:, counted & touched]
    if usual.shape[1] == 0 or strange.shape[1] == 0:
        return torch.full((len(windows),), torch.nan, dtype=torch.float64)
    return area_under(usual, strange)
