"""Read the in-distribution images once: signals into the store, facts and warnings for the card."""

import csv
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from offmap.core.duplicates import find
from offmap.core.errors import ConfigError, DataError
from offmap.core.types import STATIC, Image, NotAssessed, Signals
from offmap.explain.neighbours import decode, thumbnail
from offmap.pipeline.inputs import PathLike
from offmap.pipeline.stream import Batch, Progress

LISTED = 200
"""Dropped files that are named one by one."""


@dataclass
class Collected:
    """What is remembered of the in-distribution images; no pixels.

    Args:
        kept: one entry an image in the store, in its order (without pixels).
        dropped: items that could not be used.
        prints: fingerprints of the kept images ``(N, 1024)``.
        labels: one per kept image, "" where none is known.
        pictures: thumbnails of the kept images, only when neighbours are kept.
    """

    kept: list[Image] = field(default_factory=list)
    dropped: list[NotAssessed] = field(default_factory=list)
    prints: list[np.ndarray] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    pictures: list[np.ndarray] = field(default_factory=list)

    @property
    def n(self) -> int:
        """Number of images in the store."""
        return len(self.kept)

    def of(self, rows: np.ndarray) -> "Collected":
        """What is remembered of some of the kept images."""
        at = rows.tolist()
        prints, pictures = ([each[i] for i in at] if each else [] for each in (self.prints, self.pictures))
        return Collected([self.kept[i] for i in at], self.dropped, prints, [self.labels[i] for i in at], pictures)

    def copies(self) -> list[tuple[int, ...]]:
        """Groups of images that are copies of one another (saved again, resized, flipped)."""
        return find(np.stack(self.prints), [i.digest for i in self.kept]) if self.prints else []

    def digest(self) -> str:
        """SHA-256 of the set of images, whatever their order."""
        return hashlib.sha256("".join(sorted(i.digest for i in self.kept)).encode()).hexdigest()


@runtime_checkable
class Shelf(Protocol):
    """Whatever keeps the signals of a batch."""

    def append(self, signals: Signals) -> None:
        """Keep one batch."""


def collect(
    batches: Iterable[Batch],
    store: Shelf,
    into: Collected,
    *,
    limit: int | None,
    labels: Mapping[str, str],
    total: int | None,
    progress: Progress | None,
) -> None:
    """Put the signals of all batches into the store and remember the rest.

    Args:
        labels: by item; overrides the manifest's column ``label``.
        limit: stop after so many images.
    """
    for batch in batches:
        room = None if limit is None else limit - into.n
        images = batch.images[:room]
        at = [i for i, e in enumerate(batch.entries) if isinstance(e, Image)][:room]
        if images:
            keep = len(images)
            store.append({k: v if k in STATIC else v[:keep] for k, v in batch.signals.items()})
        into.prints.extend(batch.prints[i] for i in at if i in batch.prints)
        into.pictures.extend(shrink(batch.pictures[i]) for i in at if i in batch.pictures)
        into.labels.extend(labels.get(i.item, i.meta.get("label", "")) for i in images)
        into.kept.extend(_light(i) for i in images)
        into.dropped.extend(e for e in batch.entries if isinstance(e, NotAssessed))
        if progress is not None:
            progress({"event": "fit_read", "done": into.n + len(into.dropped), "total": limit or total})
        if limit is not None and into.n >= limit:
            return


def read_labels(path: PathLike) -> dict[str, str]:
    """Labels by path as written and by resolved path.

    Raises:
        ConfigError: no readable table with the columns path and label.
    """
    table = Path(path)
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(
            f"labels {table}: cannot be read ({type(error).__name__}); a UTF-8 CSV with the columns path and label is expected"
        ) from None
    if not rows or not {"path", "label"} <= set(rows[0]):
        raise ConfigError(f"labels {table}: the columns path and label are expected, found {', '.join(rows[0]) if rows else 'no row'}")
    out: dict[str, str] = {}
    for row in rows:
        out[row["path"]] = row["label"]
        out[str(table.parent / row["path"])] = row["label"]
    return out


def shrink(picture: np.ndarray) -> np.ndarray:
    """A picture of at most 96 pixels."""
    return decode(thumbnail(picture), "thumbnail")


def codes(labels: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Labels as integers and the names in order of their number.

    Raises:
        ConfigError: some images have a label and others not.
    """
    lacking = sum(not label for label in labels)
    if lacking:
        raise ConfigError(f"{lacking} of {len(labels)} images have no label; complete the label table, or leave labels out")
    names = sorted(set(labels))
    return np.array([names.index(label) for label in labels], dtype=np.int64), names


def facts(data: Collected, copies: Sequence[tuple[int, ...]], found: int, skipped: int) -> dict[str, Any]:
    """The data part of the card."""
    return {
        "n_found": found,
        "n_used": data.n,
        "n_skipped": skipped,
        "dropped": dict(Counter(d.reason for d in data.dropped)),
        "dropped_items": [{"item": d.item, "reason": d.reason} for d in data.dropped[:LISTED]],
        "digest": data.digest(),
        "patients_known": sum(bool(i.group) for i in data.kept),
        "duplicates": sum(len(c) - 1 for c in copies),
        "modalities": sorted({i.modality for i in data.kept if i.modality}),
        "formats": dict(Counter(i.file_format for i in data.kept)),
        "bits": {str(k): v for k, v in sorted(Counter(i.bits for i in data.kept).items())},
        "labels": sorted({label for label in data.labels if label}),
        "scored_share": round(float(np.mean([i.frame.share for i in data.kept])), 3) if data.kept else None,
    }


def warnings(data: Collected, copies: Sequence[tuple[int, ...]]) -> list[str]:
    """What the person who fits should know, in sentences."""
    out = []
    extra = sum(len(c) - 1 for c in copies)
    if extra:
        example = " and ".join(repr(data.kept[i].item) for i in copies[0][:2])
        out.append(
            f"{extra} of {data.n} images look like copies of others (for example {example}); copies stay in one part, but remove them"
        )
    if data.dropped:
        reasons = ", ".join(f"{n} {reason}" for reason, n in Counter(d.reason for d in data.dropped).most_common())
        out.append(f"{len(data.dropped)} files could not be used ({reasons}) and were left out")
    sizes = sorted(min(i.frame.shape[-2:]) for i in data.kept)
    if sizes and sizes[-1] > 2 * sizes[0]:
        out.append(
            f"image sizes are mixed: the shorter side ranges from {sizes[0]} to {sizes[-1]} pixels; resolution may be mistaken for content"
        )
    bits = sorted({i.bits for i in data.kept})
    if len(bits) > 1:
        out.append(f"bit depths are mixed: {', '.join(map(str, bits))} bits; check that all were saved the same way")
    kinds = sorted({i.modality for i in data.kept if i.modality})
    if len(kinds) > 1:
        out.append(f"DICOM modalities are mixed: {', '.join(kinds)}; one gate per modality is sharper")
    return out


def require(data: Collected, smallest: int, labels: Mapping[str, str]) -> None:
    """Refuse a set that is too small, or that a table of labels does not name.

    Raises:
        DataError: no image, or fewer than ``smallest``; says what was dropped and what to do.
        ConfigError: no image has one of the labels.
    """
    if data.n >= smallest:
        if labels and not any(data.labels):
            raise ConfigError(
                f"labels: none of the {data.n} images is in the table; write each path as it is given, or relative to the table"
            )
        return
    reasons = ", ".join(f"{n} {reason}" for reason, n in Counter(d.reason for d in data.dropped).most_common())
    left_out = f"; {len(data.dropped)} could not be used ({reasons})" if data.dropped else ""
    count = "no image" if data.n == 0 else "1 image" if data.n == 1 else f"{data.n} images"
    raise DataError(
        f"{count} to fit on{left_out}. A gate needs at least {smallest}, and 200 to reach every verdict: "
        "name more files or folders, and see `offmap check` for why files are refused"
    )


def _light(image: Image) -> Image:
    return replace(image, pixels=np.zeros((1, 0, 0), dtype=np.float32), mask=None, identifiers={})
