"""Scoring: batches of signals become rows, maps and a page."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from offmap.core.types import Image, NotAssessed
from offmap.explain.maps import display, overlay, peak_slice, save_png, to_image
from offmap.pipeline.answers import answers
from offmap.pipeline.stream import Batch, Progress
from offmap.report.row import Row

if TYPE_CHECKING:
    from offmap.pipeline.gate import Gate

NARROWEST = 1e-6
"""Least range of a map's colours: a map that is equal everywhere is shown without colour."""


@dataclass(frozen=True)
class Result:
    """One item, with what there is to look at.

    Args:
        map: oddness ``(H, W)`` or ``(D, H, W)`` of the image as read, NaN outside the scored field; None without a map.
        withheld: the map was not shown, since the image as a whole is unlike what the model of usual images knows.
        picture: the image as read in 8 bits, or None.
        overlay: the picture under its map, ``(H, W, 3)`` uint8, or None.
        features: last layer of the encoder ``(D,)``, for neighbours.
        reconstruction: of a measurement, ``(C, H, W)`` in [0, 1]; None of an image.
        grid: the map on the detector's own grid, before it was brought onto the image.
    """

    row: Row
    map: np.ndarray | None = None
    picture: np.ndarray | None = None
    overlay: np.ndarray | None = None
    features: np.ndarray | None = None
    reconstruction: np.ndarray | None = None
    grid: np.ndarray | None = None
    withheld: bool = False


@dataclass
class Summary:
    """Counts of a run.

    Args:
        second: the part of a cascade that only some images need; empty without a cascade.
        verdicts: number of items by verdict.
        reasons: number of items not assessed by reason.
        bits: surprise of each assessed item.
        passed_on: number of items that the second part was needed for.
        withheld: number of items whose map was not shown.
    """

    second: str = ""
    verdicts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    bits: list[float] = field(default_factory=list)
    passed_on: int = 0
    withheld: int = 0

    @property
    def n(self) -> int:
        """Number of items."""
        return sum(self.verdicts.values())

    def add(self, row: Row) -> None:
        """Count one row."""
        self.verdicts[row.verdict] += 1
        if row.status != "ok":
            self.reasons[row.reason] += 1
        self.passed_on += row.parts.get(self.second) is not None
        if row.surprise_bits is not None:
            self.bits.append(row.surprise_bits)


def results(gate: "Gate", batches: Iterable[Batch], *, maps: bool) -> Iterator[Result]:
    """Score batches, in order.

    Args:
        maps: also compute maps (the signals must hold what they need).
    """
    for batch in batches:
        rows = _rows(gate, batch) if batch.images else iter(())
        drawn = gate.scorer.map(batch.signals) if maps and batch.images else None
        last = batch.signals.get("features.last")
        n = 0
        for i, entry in enumerate(batch.entries):
            if isinstance(entry, NotAssessed):
                yield Result(Row(item=entry.item, status="not_assessed", reason=entry.reason, verdict="not_assessed"))
                continue
            picture = batch.pictures.get(i)
            features = None if last is None else last[n].cpu().numpy()
            yield _result(gate, entry, next(rows), None if drawn is None else drawn[n], picture, features)
            n += 1


def follow(found: Iterable[Result], *, total: int | None, progress: Progress | None, summary: Summary) -> Iterator[Result]:
    """Count rows and report progress on the way."""
    for result in found:
        summary.add(result.row)
        summary.withheld += result.withheld
        if progress is not None and (summary.n % 32 == 0 or summary.n == total):
            progress({"event": "score", "done": summary.n, "total": total})
        yield result


class MapFolder:
    """Writes ``DIR/{row:07d}.npy`` and ``.png`` beside, of a measurement ``.reconstruction.npy`` as well; complete or absent.

    Args:
        grid: write the map on the detector's own grid.
    """

    def __init__(self, folder: Path, *, grid: bool = False) -> None:
        self._folder, self._grid = folder, grid
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, i: int, result: Result) -> None:
        """Keep the map of row ``i``; nothing for an item without a map."""
        values = result.grid if self._grid else result.map
        if values is None:
            return
        target = self._folder / f"{i:07d}.npy"
        self._save(target, values)
        if result.reconstruction is not None:
            self._save(target.with_suffix(".reconstruction.npy"), result.reconstruction)
        if result.overlay is not None:
            save_png(target.with_suffix(".png"), result.overlay)

    def _save(self, target: Path, values: np.ndarray) -> None:
        hidden = target.with_name(f".{target.name}.part")
        try:
            with hidden.open("wb") as file:
                np.save(file, values.astype(np.float32), allow_pickle=False)
            hidden.replace(target)
        finally:
            hidden.unlink(missing_ok=True)


def _rows(gate: "Gate", batch: Batch) -> Iterator[Row]:
    """One row an assessed image."""
    degree = gate.scorer(batch.signals)
    verdicts = gate.recipe.decide.verdicts(degree.p_value.numpy())
    answered = answers(gate.encoder, batch.signals, len(verdicts))
    assessed = [(e, s) for e, s in zip(batch.entries, batch.sources, strict=True) if isinstance(e, Image)]
    for n, (image, source) in enumerate(assessed):
        extrapolated = float(degree.bits_extrapolated[n])
        yield Row(
            item=image.item,
            score=float(degree.score[n]),
            p_value=float(degree.p_value[n]),
            surprise_bits=float(degree.surprise_bits[n]),
            bits_extrapolated=None if math.isnan(extrapolated) else extrapolated,
            verdict=verdicts[n],
            parts={name: None if math.isnan(value := float(values[n])) else value for name, values in degree.parts.items()},
            meta={k: v for k, v in image.meta.items() if k in source.meta},
            identifiers=dict(image.identifiers),
            answer=answered[n],
        )


def _result(
    gate: "Gate", image: Image, row: Row, drawn: np.ndarray | None, picture: np.ndarray | None, features: np.ndarray | None
) -> Result:
    if drawn is None:
        return Result(row, picture=picture, features=features)
    if row.verdict != "accept" and gate.scorer.foreign(drawn):
        return Result(row, picture=picture, features=features, withheld=True)
    low, usual = next(iter(gate.scorer.map_limits.values()))[:2]
    high = max(usual, float(drawn.max()), low + NARROWEST)
    heat = to_image(drawn, image.frame, mask=image.mask)
    painted = None
    if picture is not None and drawn.ndim == 2:
        painted = overlay(picture, heat, low=low, high=high)
    elif picture is not None:
        peak = peak_slice(drawn)
        picture = display(image, index=min(peak * image.spatial[0] // drawn.shape[0], image.spatial[0] - 1))
        painted = overlay(picture, drawn[peak], low=low, high=high)
    return Result(row, heat, picture, painted, features, grid=drawn)
