"""Scores of calibration images against scores of the images at hand, as one SVG drawing."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from offmap.report.words import count, number, percent

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 72, 20, 40, 66
BINS = 48
SPREAD = 8.0
"""Above this ratio of all scores' range to the calibration scores' range the axis is compressed."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """What the drawing of scores needs beside the scored images.

    Args:
        calibration: scores of the calibration images, finite.
        review: score from which an image goes to review; None = not drawn.
        reject: score from which an image is rejected; None = out of reach, not drawn.
    """

    calibration: Float[np.ndarray, " n"]
    review: float | None = None
    reject: float | None = None


@dataclass(frozen=True, slots=True)
class Axis:
    """A monotone map of scores to [0, 1] with its ticks.

    Args:
        name: ``linear``, ``log`` or ``compressed``.
        low, high: ends, in units of the score.
        forward: from the score to the scale that is linear on paper.
    """

    name: str
    low: float
    high: float
    forward: Callable[[np.ndarray], np.ndarray]
    ticks: tuple[float, ...]

    def place(self, values: np.ndarray) -> np.ndarray:
        """Position of scores, 0 = left end, 1 = right end."""
        low, high = self.forward(np.array([self.low, self.high]))
        return np.asarray((self.forward(np.asarray(values, dtype=np.float64)) - low) / (high - low))


def axis(calibration: np.ndarray, scored: np.ndarray) -> Axis:
    """Linear where all scores fit beside the calibration scores; else logarithmic, or compressed where some are not positive."""
    every = np.concatenate([calibration, scored]).astype(np.float64)
    low, high = float(every.min()), float(every.max())
    inner = np.quantile(calibration if calibration.size else scored, [0.0, 0.25, 0.5, 0.75, 1.0])
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        return Axis("linear", low - pad, high + pad, np.asarray, _linear_ticks(low - pad, high + pad))
    if high - low <= SPREAD * max(float(inner[4] - inner[0]), 1e-12 * (high - low)):
        pad = 0.02 * (high - low)
        return Axis("linear", low - pad, high + pad, np.asarray, _linear_ticks(low - pad, high + pad))
    if low > 0 and high / low > 10:
        return Axis("log", low / 1.05, high * 1.05, np.log10, _log_ticks(low / 1.05, high * 1.05))
    return _compressed(low, high, float(inner[2]), float(inner[3] - inner[1]) or float(inner[4] - inner[0]) or (high - low) / 100)


def _compressed(low: float, high: float, centre: float, width: float) -> Axis:
    def forward(values: np.ndarray) -> np.ndarray:
        return np.asarray(np.arcsinh((values - centre) / width))

    def backward(values: np.ndarray) -> np.ndarray:
        return np.asarray(np.sinh(values) * width + centre)

    ends = forward(np.array([low, high]))
    pad = 0.02 * (ends[1] - ends[0])
    low, high = (float(x) for x in backward(np.array([ends[0] - pad, ends[1] + pad])))
    raw = backward(np.linspace(ends[0], ends[1], 7))
    ticks = sorted({_round(float(t), float(t) - centre) for t in raw})
    return Axis("compressed", low, high, forward, tuple(t for t in ticks if low <= t <= high))


def _round(value: float, size: float) -> float:
    """To two figures of ``size``."""
    return round(value, 1 - math.floor(math.log10(abs(size)))) if size else value


def _linear_ticks(low: float, high: float) -> tuple[float, ...]:
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= 7)
    first = math.ceil(low / step)
    return tuple(float(f"{(first + i) * step:.12g}") for i in range(math.floor(high / step) - first + 1))


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(decades) <= 4 else (1,)
    every = max(1, len(decades) // 7)
    return tuple(m * 10.0**d for d in decades[::every] for m in steps if low <= m * 10.0**d <= high)


def draw(histogram: Histogram, scored: Float[np.ndarray, " m"]) -> Markup:
    """The drawing.

    Args:
        histogram: calibration scores and thresholds.
        scored: scores of the images at hand, finite, any order.

    Returns:
        An ``<svg>`` element without style attributes, coloured by classes of the page; empty where there is nothing to draw.
    """
    calibration = np.asarray(histogram.calibration, dtype=np.float64)
    scores = np.asarray(scored, dtype=np.float64)
    if calibration.size + scores.size == 0:
        return Markup("")
    scale = axis(calibration, scores)
    heights = [_shares(scale, values) for values in (calibration, scores)]
    top = _ceiling(max(float(h.max()) for h in heights))
    parts = [
        *_grid(scale, top),
        _area(heights[0], top, "h-cal"),
        _area(heights[1], top, "h-new"),
        *_threshold_lines(scale, histogram),
    ]
    label = f"Histogram of {count(calibration.size, 'calibration score')} and {count(scores.size, 'score')} of this run"
    body = Markup("").join(parts)
    return Markup('<svg class="hist" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(WIDTH, HEIGHT, label, body)


def _shares(scale: Axis, values: np.ndarray) -> np.ndarray:
    if values.size == 0:
        return np.zeros(BINS)
    return np.histogram(np.clip(scale.place(values), 0, 1), bins=BINS, range=(0, 1))[0] / values.size


def _ceiling(share: float) -> float:
    steps = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
    return next((s for s in steps if share <= s), 1.0)


def _x(place: int | float) -> float:
    return round(float(LEFT + place * (WIDTH - LEFT - RIGHT)), 1)


def _y(height: int | float) -> float:
    return round(float(TOP + (1 - height) * (HEIGHT - TOP - BOTTOM)), 1)


def _area(heights: np.ndarray, top: float, name: str) -> Markup:
    if not heights.any():
        return Markup("")
    steps = [f"M{_x(0)} {_y(0)}"]
    for i, height in enumerate(heights / top):
        steps.append(f"V{_y(float(height))}H{_x((i + 1) / BINS)}")
    return Markup('<path class="{}" d="{}"/>').format(name, "".join(steps) + f"V{_y(0)}Z")


def _grid(scale: Axis, top: float) -> list[Markup]:
    out = []
    for i in range(5):
        y = _y(i / 4)
        out.append(Markup('<line class="h-grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(_x(0), _x(1), y, y))
        out.append(Markup('<text class="h-num" x="{}" y="{}" text-anchor="end">{}</text>').format(LEFT - 8, y + 5, percent(top * i / 4)))
    last = -math.inf
    for tick, place in zip(scale.ticks, scale.place(np.array(scale.ticks)), strict=True):
        if _x(float(place)) - last < 80:
            continue
        last = _x(float(place))
        out.append(Markup('<line class="h-tick" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(last, last, _y(0), _y(0) + 5))
        out.append(Markup('<text class="h-num" x="{}" y="{}" text-anchor="middle">{}</text>').format(last, _y(0) + 26, number(tick)))
    title = {"linear": "score", "log": "score (logarithmic axis)", "compressed": "score (axis compressed at the ends)"}[scale.name]
    out.append(Markup('<text class="h-label" x="{}" y="{}" text-anchor="middle">{}</text>').format(_x(0.5), HEIGHT - 8, title))
    out.append(Markup('<text class="h-label" x="{}" y="{}">share of images</text>').format(4, 18))
    return out


def _threshold_lines(scale: Axis, histogram: Histogram) -> list[Markup]:
    out = []
    placed = -math.inf
    for name, value in (("review", histogram.review), ("reject", histogram.reject)):
        if value is None or not scale.low <= value <= scale.high:
            continue
        x = _x(float(scale.place(np.array(value))))
        row = TOP + (40 if x - placed < 110 else 16)
        placed = x
        near = x > WIDTH - RIGHT - 110
        out.append(Markup('<line class="h-line h-{}" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(name, x, x, TOP - 4, _y(0)))
        text = Markup('<text class="h-mark" x="{}" y="{}" text-anchor="{}">{}</text>')
        out.append(text.format(x - 5 if near else x + 5, row, "end" if near else "start", f"{name} →"))
    return out
