"""How block and window of KLIP change what it finds: tables, one drawing, and a page."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from markupsafe import Markup

from offmap import __version__
from offmap.report.ranking import refuse_foreign
from offmap.report.templating import environment, policy

SHADES = np.array(
    [(0, 0, 4), (61, 9, 101), (138, 34, 106), (210, 70, 68), (249, 142, 9), (249, 203, 53), (252, 255, 164)], dtype=np.float64
)
"""Even steps of inferno (N. Smith and S. van der Walt, CC0)."""

PANEL, GAP, LEFT, TOP, FOOT = 150, 34, 96, 44, 86
MOST = 7
"""Windows of one length that a table has side by side."""

FLOOR = 0.5
"""AUROC that is drawn darkest: nothing is found."""

COLUMNS = ("block_pixels", "window_from", "window_to", "auroc_images", "auroc_blocks", "chosen")


@dataclass(frozen=True, kw_only=True)
class SurfaceReport:
    """What the page shows.

    Args:
        blocks: sides of blocks in pixels.
        windows: from and to, shares of the steps; every pair of ends.
        images, parts: AUROC of images and of blocks inside them, by block and window.
        wanted: what was to be large, by block and window.
        at: places of block and window that were chosen.
        before: those of the detector as it was; None where they are not in the surface.
        sentences: what was chosen and what it is worth.
        facts: how it was measured, term and text.
        warnings: what to know before relying on it.
    """

    blocks: Sequence[int]
    windows: Sequence[tuple[float, float]]
    images: Float64[np.ndarray, "b w"]
    parts: Float64[np.ndarray, "b w"]
    wanted: Float64[np.ndarray, "b w"]
    at: tuple[int, int]
    before: tuple[int, int] | None
    sentences: Sequence[str]
    facts: Mapping[str, str]
    warnings: Sequence[str] = ()

    def table(self) -> tuple[list[str], list[list[object]]]:
        """Headings and rows: for each block, windows as long as the chosen one, side by side, and all steps."""
        low, high = self.windows[self.at[1]]
        length, step = high - low, min(self.windows[0][1] - self.windows[0][0], 1.0)
        every = max(1, round(length / step / 2), math.ceil(round((1 - length) / step + 1) / MOST))
        ends = [
            (i, window)
            for i, window in enumerate(self.windows)
            if abs(window[1] - window[0] - length) < 1e-9 and round((window[0] - low) / step) % every == 0
        ]
        whole = [(i, w) for i, w in enumerate(self.windows) if w[1] - w[0] > 1 - 1e-9 and length < 1 - 1e-9]
        heads = ["block", *(f"{a:g}-{b:g}" for _, (a, b) in (*ends, *whole)), "best window", "its AUROC"]
        rows: list[list[object]] = []
        for b, side in enumerate(self.blocks):
            best = int(np.nanargmax(self.wanted[b])) if np.isfinite(self.wanted[b]).any() else 0
            cells = [_mark(float(self.wanted[b, i]), (b, i) == self.at) for i, _ in (*ends, *whole)]
            rows.append(
                [f"{side} px", *cells, f"{self.windows[best][0]:g}-{self.windows[best][1]:g}", _mark(float(self.wanted[b, best]), False)]
            )
        return heads, rows

    def to_csv(self, path: Path) -> None:
        """Every block and window, one a line."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            for b, side in enumerate(self.blocks):
                for w, (low, high) in enumerate(self.windows):
                    areas = ("" if np.isnan(v) else f"{v:.4f}" for v in (self.images[b, w], self.parts[b, w]))
                    writer.writerow([side, f"{low:g}", f"{high:g}", *areas, int((b, w) == self.at)])

    def to_svg(self, path: Path) -> None:
        """The drawing alone."""
        text = str(self.drawing()).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" style="background:#fff" ', 1)
        path.write_text(text, encoding="utf-8")

    def to_html(self, path: Path) -> None:
        """The page.

        Raises:
            ConfigError: another page lies there, which offmap did not write.
        """
        refuse_foreign(path)
        heads, rows = self.table()
        context = {
            "csp": policy(styles=("page.css", "ranking.css", "surface.css")),
            "version": __version__,
            "report": self,
            "heads": heads,
            "rows": rows,
            "drawing": self.drawing(),
        }
        path.write_text(environment().get_template("surface.html.j2").render(context), encoding="utf-8", errors="backslashreplace")

    def drawing(self) -> Markup:
        """A panel for each block, begin of the window to the right, its end upwards; above for images, below for blocks inside them."""
        lines = [("images", self.images), ("blocks", self.parts)]
        width = max(LEFT + len(self.blocks) * (PANEL + GAP), LEFT + 420)
        height = TOP + len(lines) * (PANEL + GAP) + FOOT
        parts = []
        for line, (name, values) in enumerate(lines):
            top = TOP + line * (PANEL + GAP)
            middle = top + PANEL / 2
            turned = '<text x="14" y="{}" font-size="14" font-weight="650" fill="currentColor" text-anchor="middle" '
            turned += 'transform="rotate(-90 14 {})">AUROC of {}</text>'
            parts.append(_element(turned, middle, middle, name))
            for b, side in enumerate(self.blocks):
                left = LEFT + b * (PANEL + GAP)
                parts += self._panel(values[b], b, left, top, ends=b == 0, begins=line == 1)
                if line == 0:
                    parts.append(_text(left + PANEL / 2, TOP - 22, f"blocks of {side} px", "middle", weight=650))
        parts += _scale(LEFT, height - 34)
        body = Markup("").join(parts)
        words = "AUROC of drawn artefacts by block and window of steps"
        svg = '<svg class="surface" viewBox="0 0 {} {}" width="{}" role="img" aria-label="{}" font-family="system-ui, sans-serif">{}</svg>'
        return _element(svg, width, height, width, words, body)

    def _panel(
        self, values: Float64[np.ndarray, " w"], b: int, left: int | float, top: int | float, *, ends: bool, begins: bool
    ) -> list[Markup]:
        step = PANEL / max(1, round(1 / (self.windows[0][1] - self.windows[0][0])))
        frame = '<rect x="{}" y="{}" width="{}" height="{}" fill="none" stroke="currentColor" stroke-opacity="0.3"/>'
        parts = [_element(frame, left, top, PANEL, PANEL)]
        marks = []
        for w, (low, high) in enumerate(self.windows):
            x, y = round(left + low * PANEL, 2), round(top + (1 - high) * PANEL, 2)
            value = float(values[w])
            rect = '<rect x="{}" y="{}" width="{:.2f}" height="{:.2f}" fill="{}"><title>{}</title></rect>'
            told = f"steps {low:g} to {high:g}: {value:.3f}"
            parts.append(_element(rect, x, y, step + 0.05, step + 0.05, _colour(value), told))
            for place, colour in ((self.before, "#00a0ff"), (self.at, "#00c060")):
                if place == (b, w):
                    ring = '<rect x="{}" y="{}" width="{:.2f}" height="{:.2f}" fill="none" stroke="{}" stroke-width="3"/>'
                    marks.append(_element(ring, x - 1.5, y - 1.5, step + 3, step + 3, colour))
        for share in (0.0, 0.5, 1.0):
            if begins:
                parts.append(_text(left + share * PANEL, top + PANEL + 15, f"{share:g}", "middle"))
            if ends:
                parts.append(_text(left - 6, top + (1 - share) * PANEL + 4, f"{share:g}", "end"))
        if begins:
            parts.append(_text(left + PANEL / 2, top + PANEL + 30, "window from", "middle"))
        if ends:
            parts.append(_text(left - 42, top + PANEL / 2 + 4, "to", "middle"))
        return parts + marks


def _element(form: str, *values: object) -> Markup:
    """A form of this file with its values, which are escaped."""
    return Markup(form).format(*values)  # noqa: S704


def _mark(value: float, chosen: bool) -> str:
    return ("-" if np.isnan(value) else f"{value:.3f}") + ("*" if chosen else "")


def _colour(value: float) -> str:
    if np.isnan(value):
        return "#888888"
    place = min(1.0, max(0.0, (value - FLOOR) / (1 - FLOOR))) * (len(SHADES) - 1)
    low = min(int(place), len(SHADES) - 2)
    mixed = SHADES[low] + (place - low) * (SHADES[low + 1] - SHADES[low])
    return "#" + "".join(f"{round(channel):02x}" for channel in mixed.tolist())


def _text(x: int | float, y: int | float, words: str, anchor: str, *, weight: int = 400) -> Markup:
    form = '<text x="{:g}" y="{:g}" text-anchor="{}" font-size="12" font-weight="{}" fill="currentColor">{}</text>'
    return _element(form, x, y, anchor, weight, words)


def _scale(left: int | float, top: int | float) -> list[Markup]:
    parts = []
    for i in range(50):
        colour = _colour(FLOOR + (1 - FLOOR) * i / 49)
        parts.append(_element('<rect x="{:g}" y="{:g}" width="4.2" height="12" fill="{}"/>', left + 4 * i, top, colour))
    parts += [_text(left - 4, top + 10, "0.5", "end"), _text(left + 206, top + 10, "1", "start")]
    for x, colour, words in ((left + 250, "#00c060", "chosen"), (left + 340, "#00a0ff", "before")):
        ring = '<rect x="{:g}" y="{:g}" width="12" height="12" fill="none" stroke="{}" stroke-width="3"/>'
        parts += [_element(ring, x, top, colour), _text(x + 20, top + 10, words, "start")]
    return parts
