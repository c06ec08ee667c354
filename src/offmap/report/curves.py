"""Risk over coverage, as one SVG drawing."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from offmap.report.words import percent

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 72, 20, 40, 66
POINTS = 400
"""Points a line has at most."""

LINES = 6
"""Lines that can be told from each other."""


@dataclass(frozen=True, eq=False)
class Curve:
    """Risk-coverage curve of one confidence.

    Args:
        name: of the confidence.
        coverage: share of images that is accepted, rising.
        threshold: lowest confidence that is accepted at each coverage.
        selective: share of failures among those that are accepted.
        generalised: share of all images that is accepted and fails.
    """

    name: str
    coverage: Float[np.ndarray, " g"]
    threshold: Float[np.ndarray, " g"]
    selective: Float[np.ndarray, " g"]
    generalised: Float[np.ndarray, " g"]

    def thinned(self, most: int) -> "Curve":
        """At most ``most`` of its points, evenly over coverage, the last one among them."""
        if len(self.coverage) <= most:
            return self
        at = np.unique(np.searchsorted(self.coverage, np.linspace(self.coverage[0], self.coverage[-1], most)))
        at = np.minimum(at, len(self.coverage) - 1)
        return Curve(self.name, self.coverage[at], self.threshold[at], self.selective[at], self.generalised[at])


def draw(curves: Sequence[Curve], *, error: float, bound: float) -> Markup:
    """Selective risk over coverage.

    Args:
        curves: the first six are drawn.
        error: share of all images that fail: a confidence that knows nothing stays there.
        bound: of the risk, drawn as a line.

    Returns:
        An ``<svg>`` element without style attributes, coloured by classes of the page; empty where there is nothing to draw.
    """
    if not curves:
        return Markup("")
    shown = [curve.thinned(POINTS) for curve in curves[:LINES]]
    settled = [curve.selective[curve.coverage >= 0.05] for curve in shown]
    top = _ceiling(max([error, bound, *(float(risk.max()) for risk in settled if len(risk))]))
    parts = _grid(top)
    parts.append(_level(error, top, "r-chance"))
    parts.append(_level(bound, top, "r-bound"))
    coverage = np.linspace(0.01, 1, 200)
    parts.append(_line(coverage, np.maximum(0.0, coverage - (1 - error)) / coverage, top, "r-best"))
    parts += [_line(curve.coverage, curve.selective, top, f"r-line r{i}") for i, curve in enumerate(shown)]
    label = f"Risk over coverage of {', '.join(curve.name for curve in shown)}"
    body = Markup("").join(parts)
    return Markup('<svg class="hist" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(WIDTH, HEIGHT, label, body)


def _ceiling(share: float) -> float:
    steps = (0.01, 0.02, 0.04, 0.08, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8)
    return next((s for s in steps if share <= s), 1.0)


def _x(place: int | float) -> float:
    return round(float(LEFT + place * (WIDTH - LEFT - RIGHT)), 1)


def _y(height: int | float) -> float:
    return round(float(TOP + (1 - min(height, 1.0)) * (HEIGHT - TOP - BOTTOM)), 1)


def _level(risk: float, top: float, name: str) -> Markup:
    y = _y(risk / top)
    return Markup('<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(name, _x(0), _x(1), y, y)


def _line(coverage: np.ndarray, risk: np.ndarray, top: float, name: str) -> Markup:
    points = " ".join(f"{_x(c)},{_y(r / top)}" for c, r in zip(coverage.tolist(), risk.tolist(), strict=True))
    return Markup('<polyline class="{}" points="{}"/>').format(name, points)


def _grid(top: float) -> list[Markup]:
    out = []
    for i in range(5):
        y, x = _y(i / 4), _x(i / 4)
        out.append(Markup('<line class="h-grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(_x(0), _x(1), y, y))
        out.append(Markup('<text class="h-num" x="{}" y="{}" text-anchor="end">{}</text>').format(LEFT - 8, y + 5, percent(top * i / 4)))
        anchor = "end" if i == 4 else "middle"
        out.append(Markup('<text class="h-num" x="{}" y="{}" text-anchor="{}">{}</text>').format(x, _y(0) + 26, anchor, percent(i / 4)))
    title = "coverage: share of images that are accepted, the surest first"
    out.append(Markup('<text class="h-label" x="{}" y="{}" text-anchor="middle">{}</text>').format(_x(0.5), HEIGHT - 8, title))
    out.append(Markup('<text class="h-label" x="{}" y="{}">share of failures among the accepted</text>').format(4, 18))
    return out
