"""The report for people: one HTML page that needs no network, with the worklist, the histogram and the gate's card.

The page carries its style, its script and its first pictures; a Content-Security-Policy with the hashes of that style
and script lets nothing else run or load. Everything that comes from files (names, columns, the card) is escaped.
"""

import contextlib
import heapq
import re
import secrets
import shutil
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from offmap import __version__
from offmap.core.errors import ConfigError
from offmap.report import answer as answers
from offmap.report import card as cards
from offmap.report import view
from offmap.report.histogram import Histogram, draw
from offmap.report.ranking import refuse_foreign
from offmap.report.row import Row
from offmap.report.templating import environment, policy
from offmap.report.thumbnail import PIXELATED, Pixels, data_uri, encode
from offmap.report.words import VERDICTS, middle, printable

INLINE = 200
"""Pictures inside the page; further ones lie in files beside it."""
SHOWN = 2000
"""Rows on the page; further ones are in the score table only."""
REFUSED = 500
"""Items that were not assessed and are listed by name."""

_OURS = re.compile(r"\d{6,}-(image|map|near\d+)\.(jpg|png)")


@dataclass(frozen=True, slots=True)
class _Kept:
    """A row of the worklist and where its pictures wait."""

    row: Row
    order: int
    files: tuple[tuple[str, str, int, int], ...]


class Page:
    """Collects rows and writes ``FOLDER/index.html``; memory is bounded by the rows shown, not by the images added.

        with Page("report", card, histogram=Histogram(scores)) as page:
            page.add(row, image, overlay)

    Pictures are shrunk and encoded at once and wait on disk. The page appears complete when the ``with`` block ends well;
    when it ends with an exception nothing is left and an older report in the folder is untouched.

    Args:
        folder: place of ``index.html`` and, where needed, ``images/``.
        card: the gate's card, JSON values; see ``offmap.report.card``.
        histogram: calibration scores and score thresholds; None = no histogram.
        table: name of the score table, for the reader.
        title: heading of the page.
        single: the page is of one image, which comes first and large, without the numbers of a run.
        picture: what the first picture of a row is, under it.
        inline, shown: see ``INLINE`` and ``SHOWN``.

    Raises:
        ConfigError: the folder cannot be written, or holds an ``index.html`` or ``images`` that offmap did not write.
    """

    def __init__(
        self,
        folder: str | Path,
        card: Mapping[str, Any],
        *,
        histogram: Histogram | None = None,
        table: str = "",
        title: str = "Are these images on the map?",
        single: bool = False,
        picture: str = "image",
        inline: int = INLINE,
        shown: int = SHOWN,
    ) -> None:
        self.folder = Path(folder)
        self._card, self._histogram, self._table, self._title = card, histogram, table, title
        self._inline, self._shown, self._single = inline, shown, single
        self._picture, self._measured = picture, False
        self._scale = view.Scale.of(card)
        self._heap: list[tuple[tuple[float, float, float], int, _Kept]] = []
        self._scores = array("d")
        self._verdicts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._refused: list[tuple[str, str]] = []
        self._count = 0
        self._target = _Target(self.folder)

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def wants(self, row: Row) -> bool:
        """Whether pictures of this row would be shown, as far as known now; so that no map is drawn in vain."""
        if row.status != "ok" or self._shown == 0:
            return False
        return len(self._heap) < self._shown or bool(row.rank > self._heap[0][0])

    def add(self, row: Row, image: Pixels | None = None, overlay: Pixels | None = None, *, neighbours: Sequence[Pixels] = ()) -> None:
        """Add one item.

        Args:
            row: of the score table.
            image: the image as read, grey ``(H, W)`` or RGB ``(H, W, 3)``.
            overlay: the image with its map drawn over it, same forms.
            neighbours: nearest in-distribution images, the nearest first.

        Raises:
            SignalError: a picture of another type or shape.
        """
        order, self._count = self._count, self._count + 1
        self._measured = self._measured or row.residual is not None
        self._verdicts[row.verdict] += 1
        if row.score is None:
            self._reasons[row.reason] += 1
            if len(self._refused) < REFUSED:
                self._refused.append((row.item, view.refusal(row)))
            return
        self._scores.append(row.score)
        if not self.wants(row):
            return
        named = [("image", image), ("map", overlay), *((f"near{i}", near) for i, near in enumerate(neighbours, 1))]
        files = tuple(self._target.picture(order, name, pixels) for name, pixels in named if pixels is not None)
        entry = (row.rank, -order, _Kept(row, order, files))
        if len(self._heap) < self._shown:
            heapq.heappush(self._heap, entry)
        else:
            self._target.drop(name for name, *_ in heapq.heappushpop(self._heap, entry)[2].files)

    def close(self) -> Path:
        """Write the page and put it in its place; gives the path of ``index.html``."""
        try:
            self._target.write(self._render())
            return self._target.finish()
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Remove what was written."""
        self._target.discard()

    def _render(self) -> Iterator[str]:
        assessed = len(self._scores)
        context = {
            "title": self._title,
            "single": self._single,
            "version": __version__,
            "csp": policy(styles=("page.css",), scripts=("page.js",)),
            "made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
            "gate": {key: str(self._card[key]) for key in ("id", "created", "recipe") if self._card.get(key)},
            "verdicts": [(code, name, self._verdicts[code]) for code, name in VERDICTS.items()],
            "total": self._count,
            "assessed": assessed,
            "shown": len(self._heap),
            "alarms": view.false_alarms(self._scale, assessed),
            "scale": self._scale,
            "bands": self._scale.bands(),
            "calibrated": 0 if self._histogram is None else int(self._histogram.calibration.size),
            "histogram": draw(self._histogram, np.frombuffer(self._scores, dtype=np.float64)) if self._histogram is not None else "",
            "cases": self._cases(),
            "has_answers": any(kept.row.answer is not None for *_, kept in self._heap),
            "unnamed": answers.UNNAMED if any(k.row.answer is not None and not k.row.answer.classes for *_, k in self._heap) else "",
            "has_maps": any("-map." in name for *_, kept in self._heap for name, *_ in kept.files),
            "reasons": [(code, view.explain(code), n) for code, n in self._reasons.most_common()],
            "refused": self._refused,
            "measured": self._measured,
            "things": "measurement" if self._measured else "image",
            "card": cards.sections(self._card),
            "warnings": cards.listed(self._card, "warnings"),
            "table": self._table,
        }
        yield from environment().get_template("page.html.j2").generate(context)

    def _cases(self) -> Iterator[view.Case]:
        left = self._inline
        for place, (_, _, kept) in enumerate(sorted(self._heap, key=lambda e: e[:2], reverse=True), 1):
            pictures, left = self._pictures(kept, left)
            count = sum(not name.split("-")[1].startswith("near") for name, *_ in kept.files)
            yield view.case(kept.row, self._scale, place=place, order=kept.order, pictures=pictures[:count], neighbours=pictures[count:])

    def _pictures(self, kept: _Kept, left: int) -> tuple[list[view.Picture], int]:
        out = []
        for name, noted, width, height in kept.files:
            caption = self._picture if noted == "image" else noted
            inside = left > 0
            left -= inside
            source = self._target.embed(name) if inside else f"images/{name}"
            alt = f"{caption} of {middle(printable(kept.row.item), view.NAME_WIDTH)}"
            out.append(view.Picture(source, width, height, caption, alt, max(width, height) <= PIXELATED, not inside))
        return out, left


class _Target:
    """A folder that gets a page: everything is made in a hidden folder inside it and moved at the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open = True
        try:
            self._new = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            _refuse_foreign(folder)
            self._part = folder / f".report-{secrets.token_hex(4)}.part"
            (self._part / "images").mkdir(parents=True)
        except OSError as error:
            raise ConfigError(f"{str(folder)!r} cannot be written: {error.strerror or 'no access'}; choose another folder") from error

    def picture(self, order: int, name: str, pixels: Pixels) -> tuple[str, str, int, int]:
        """Encode and keep a picture: file name, caption, width, height."""
        thumbnail = encode(pixels)
        file = f"{order:06d}-{name}.{thumbnail.suffix}"
        (self._part / "images" / file).write_bytes(thumbnail.data)
        return file, f"neighbour {name[4:]}" if name.startswith("near") else name, thumbnail.width, thumbnail.height

    def embed(self, name: str) -> str:
        """A picture as text; its file is no longer needed."""
        path = self._part / "images" / name
        uri = data_uri(path)
        path.unlink()
        return uri

    def drop(self, names: Iterator[str]) -> None:
        for name in names:
            (self._part / "images" / name).unlink()

    def write(self, chunks: Iterator[str]) -> None:
        with (self._part / "index.html").open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.writelines(chunks)

    def finish(self) -> Path:
        images, page = self._folder / "images", self._folder / "index.html"
        if images.exists():
            images.rename(self._part / "before")
        if any((self._part / "images").iterdir()):
            (self._part / "images").rename(images)
        (self._part / "index.html").replace(page)
        shutil.rmtree(self._part)
        self._open = False
        return page

    def discard(self) -> None:
        if self._open:
            self._open = False
            shutil.rmtree(self._part, ignore_errors=True)
            if self._new:
                with contextlib.suppress(OSError):
                    self._folder.rmdir()


def _refuse_foreign(folder: Path) -> None:
    """A report never replaces what offmap did not write."""
    page, images = folder / "index.html", folder / "images"
    refuse_foreign(page)
    if images.exists() and not (images.is_dir() and all(_OURS.fullmatch(p.name) for p in images.iterdir())):
        raise ConfigError(f"{str(images)!r} holds files that offmap did not write; choose another folder for the report")
