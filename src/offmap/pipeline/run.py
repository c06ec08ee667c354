"""Scoring: batches of signals become rows, maps and a page."""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from offmap.core.types import Frame, Image, NotAssessed
from offmap.decide.verdict import Thresholds
from offmap.explain.maps import overlay, save_png, to_image
from offmap.pipeline.scorer import Scored
from offmap.pipeline.stream import Batch, Progress
from offmap.report.row import Row

if TYPE_CHECKING:
    from offmap.pipeline.gate import Gate


@dataclass(frozen=True)
class Result:
    """One item, with what there is to look at.

    Args:
        map: oddness ``(H, W)`` or ``(D, H, W)`` of the image as read, NaN outside the scored field; None without a map.
        picture: the image as read in 8 bits, or None.
        overlay: the picture under its map, ``(H, W, 3)`` uint8, or None.
        features: last layer of the encoder ``(D,)``, for neighbours.
    """

    row: Row
    map: np.ndarray | None = None
    picture: np.ndarray | None = None
    overlay: np.ndarray | None = None
    features: np.ndarray | None = None


@dataclass
class Summary:
    """Counts of a run.

    Args:
        verdicts: number of items by verdict.
        reasons: number of items not assessed by reason.
        bits: surprise of each assessed item.
    """

    verdicts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    bits: list[float] = field(default_factory=list)

    @property
    def n(self) -> int:
        """Number of items."""
        return sum(self.verdicts.values())

    def add(self, row: Row) -> None:
        """Count one row."""
        self.verdicts[row.verdict] += 1
        if row.status != "ok":
            self.reasons[row.reason] += 1
        if row.surprise_bits is not None:
            self.bits.append(row.surprise_bits)


def results(gate: "Gate", batches: Iterable[Batch], *, maps: bool) -> Iterator[Result]:
    """Score batches, in order.

    Args:
        maps: also compute maps (the signals must hold what they need).
    """
    thresholds = Thresholds(alpha=gate.recipe.decide.alpha, reject=gate.recipe.decide.reject_at)
    for batch in batches:
        scored = gate.scorer(batch.signals) if batch.images else None
        drawn = gate.scorer.map(batch.signals) if maps and batch.images else None
        last = batch.signals.get("features.last")
        n = 0
        for i, entry in enumerate(batch.entries):
            if isinstance(entry, NotAssessed):
                yield Result(Row(item=entry.item, status="not_assessed", reason=entry.reason, verdict="not_assessed"))
            elif scored is not None:
                features = None if last is None else last[n].cpu().numpy()
                yield _result(gate, entry, _row(entry, scored, n, thresholds), None if drawn is None else drawn[n], batch.pictures.get(i), features)
                n += 1


def follow(found: Iterable[Result], *, total: int | None, progress: Progress | None, summary: Summary) -> Iterator[Result]:
    """Count rows and report progress on the way."""
    for result in found:
        summary.add(result.row)
        if progress is not None and (summary.n % 32 == 0 or summary.n == total):
            progress({"event": "score", "done": summary.n, "total": total})
        yield result


class MapFolder:
    """Writes ``DIR/{row:07d}.npy`` and ``.png`` beside; a file is complete or absent."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, i: int, result: Result) -> None:
        """Keep the map of row ``i``; nothing for an item without a map."""
        if result.map is None:
            return
        target = self._folder / f"{i:07d}.npy"
        hidden = target.with_name(f".{target.name}.part")
        try:
            with hidden.open("wb") as file:
                np.save(file, result.map.astype(np.float32), allow_pickle=False)
            hidden.replace(target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                hidden.unlink()
        if result.overlay is not None:
            save_png(target.with_suffix(".png"), result.overlay)


def _row(image: Image, scored: Scored, n: int, thresholds: Thresholds) -> Row:
    extrapolated = float(scored.bits_extrapolated[n])
    p_value = float(scored.p_value[n])
    return Row(
        item=image.item,
        score=float(scored.score[n]),
        p_value=p_value,
        surprise_bits=float(scored.surprise_bits[n]),
        bits_extrapolated=extrapolated if np.isfinite(extrapolated) else None,
        verdict=thresholds.verdict(p_value),
        parts={name: float(values[n]) for name, values in scored.parts.items()},
        meta=dict(image.meta),
        identifiers=dict(image.identifiers),
    )


def _result(gate: "Gate", image: Image, row: Row, drawn: np.ndarray | None, picture: np.ndarray | None, features: np.ndarray | None) -> Result:
    if drawn is None:
        return Result(row, picture=picture, features=features)
    low, high = next(iter(gate.scorer.map_limits.values()))
    heat = to_image(drawn, image.frame, image.mask)
    painted = None
    if picture is not None:
        shown = heat if heat.ndim == 2 else heat[int(np.nanargmax(np.nanmax(heat, axis=(1, 2))))]
        painted = overlay(picture, _fit(drawn, image, picture.shape[:2]) if shown.shape != picture.shape[:2] else shown, low=low, high=high)
    return Result(row, heat, picture, painted, features)


def _fit(drawn: np.ndarray, image: Image, shape: tuple[int, ...]) -> np.ndarray:
    """The map on a picture that is smaller than the image as read."""
    plane = drawn if drawn.ndim == 2 else drawn[int(np.argmax(drawn.max(axis=(1, 2))))]
    ratio = [new / old for new, old in zip(shape, image.frame.shape[-2:], strict=True)]
    low = tuple(x * r for x, r in zip(image.frame.low[-2:], ratio, strict=True))
    high = tuple(x * r for x, r in zip(image.frame.high[-2:], ratio, strict=True))
    return to_image(plane, Frame(tuple(shape), low, high), None)
