"""The page of a fit: how far the training is while it runs, the gate's card and the pictures of the training when it is over."""

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from offmap import __version__
from offmap.core.errors import ConfigError
from offmap.report import card as cards
from offmap.report.histogram import Histogram, draw
from offmap.report.ranking import refuse_foreign
from offmap.report.templating import environment, policy
from offmap.report.training import STEPS, course, curves, sheets_of
from offmap.report.words import number

REFRESH = 10
"""Seconds after which a browser looks again while a network is trained."""

Event = dict[str, Any]


class FitPage:
    """Writes ``FOLDER/index.html`` at each checkpoint and at the end; does nothing without a folder.

    Args:
        folder: place of the page.
        recipe: name of what is fitted.

    Raises:
        ConfigError: the folder cannot be written, or holds an ``index.html`` that offmap did not write.
    """

    def __init__(self, folder: Path | None, recipe: str) -> None:
        self._page = None if folder is None else folder / "index.html"
        self._recipe, self._curves, self._words, self._closed = recipe, dict[str, list[float]](), "reading images", False
        if self._page is not None:
            refuse_foreign(self._page)
            self._write(refresh=REFRESH)

    def __enter__(self) -> "FitPage":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._closed:
            self._words = f"it was {self._words}; what went wrong stands on the terminal"
            self._write()

    def watching(self, progress: Callable[[Event], None] | None) -> Callable[[Event], None] | None:
        """Events go to the page and to the one who waits."""
        if self._page is None:
            return progress

        def tell(event: Event) -> None:
            self._see(event)
            if progress is not None:
                progress(event)

        return tell

    def close(self, card: Mapping[str, Any], histogram: Histogram, sheets: Sequence[tuple[str, str]]) -> None:
        """The last page.

        Args:
            card: of the gate.
            histogram: calibration scores.
            sheets: pictures that are not in the card, with their captions.
        """
        self._closed = True
        found: dict[str, Any] = {"card": cards.sections(card), "warnings": cards.listed(card, "warnings"), "sheets": sheets_of(sheets)}
        self._write(**found, histogram=draw(histogram, histogram.calibration[:0]))

    def _see(self, event: Event) -> None:
        if event["event"] == "train" and "loss" in event:
            before = f"{event['what']}_" if event.get("what") else ""
            told = {name: value for name, value in event.items() if name not in ("event", "what", "done", "total")}
            for name, value in {**told, STEPS: event["done"]}.items():
                self._curves.setdefault(before + name, []).append(float(value))
            of = f" of {event['total']:,}" if event.get("total") else ""
            self._words = f"training{' the ' + event['what'] if before else ''}, step {event['done']:,}{of}"
        elif event["event"] == "fit":
            self._words = "fitting and calibrating"
        else:
            return
        self._write(refresh=REFRESH)

    def _first(self) -> str:
        """What the first checkpoint told, while there is no curve yet; empty before."""
        told = [f"{course(name)} {number(values[-1])}" for name, values in self._curves.items() if course(name)]
        return f"At the first checkpoint: {', '.join(told)}. The curves begin at the second one." if told else ""

    def _write(self, *, refresh: int = 0, **parts: Any) -> None:
        if self._page is None:
            return
        known = {"card": [], "warnings": [], "sheets": "", "histogram": "", "curves": "" if self._closed else curves(self._curves)}
        now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S")
        shown = {
            "recipe": self._recipe,
            "words": "" if self._closed else self._words,
            "refresh": refresh,
            "first": "" if self._closed else self._first(),
            "now": now,
            "version": __version__,
        }
        text = environment().get_template("fit.html.j2").render(csp=policy(styles=("page.css",)), **shown, **{**known, **parts})
        part = self._page.with_name(f".index-{os.getpid()}.part")
        try:
            self._page.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
            part.replace(self._page)
        except OSError as error:
            raise ConfigError(f"{str(self._page)!r} cannot be written: {error.strerror or 'no access'}; choose another folder") from error
