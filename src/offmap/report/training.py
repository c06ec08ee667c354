"""How a network was trained, as pictures on the page: its loss, and what it draws."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from offmap.report.words import number

WIDTH, HEIGHT = 760, 280
LEFT, RIGHT, TOP, BOTTOM = 84, 10, 30, 40
POINTS = 200
"""Points a line has at most."""

CURVES = {"loss": "training", "held_out_loss": "unseen images"}


def figure(training: Mapping[str, Any]) -> Markup:
    """The loss at each checkpoint, and samples of the model; empty where the card has neither."""
    return loss(training) + samples(training)


def loss(training: Mapping[str, Any]) -> Markup:
    """Lines of the losses, one above the other, as an ``<svg>`` element."""
    lines = {name: _numbers(training.get(name)) for name in CURVES}
    values = [value for line in lines.values() for value in line]
    if min(map(len, lines.values())) < 2:
        return Markup("")
    low, high = min(values), max(values)
    high = high if high > low else low + 1.0
    marks = [
        Markup('<text class="h-num" x="{}" y="{}" text-anchor="end">{}</text>').format(LEFT - 6, _y(value, low, high) + 5, number(value))
        for value in (low, high)
    ]
    for i, (name, line) in enumerate(lines.items()):
        thin = line[:: max(1, len(line) // POINTS)]
        points = " ".join(f"{_x(k / (len(thin) - 1))},{_y(value, low, high)}" for k, value in enumerate(thin))
        marks.append(Markup('<polyline class="t-line t{}" points="{}"/>').format(i, points))
        marks.append(
            Markup('<text class="h-num" x="{}" y="{}">{}</text>').format(LEFT + 8 + 170 * i, 18, ("\u2014 ", "- - ")[i] + CURVES[name])
        )
    marks.append(
        Markup('<text class="h-label" x="{}" y="{}" text-anchor="middle">training, from start to end</text>').format(WIDTH // 2, HEIGHT - 6)
    )
    label = "Loss of the network over its training"
    return Markup('<svg class="hist" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, label, Markup("").join(marks)
    )


def samples(training: Mapping[str, Any]) -> Markup:
    """The sheet of samples; empty where the card holds no PNG."""
    sheet = training.get("samples")
    if not isinstance(sheet, str) or not re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}", sheet):
        return Markup("")
    words = "Drawn by the model from noise: what it takes for usual. They should look like the training images."
    return Markup(
        '<figure class="samples"><img src="{}" alt="Pictures drawn by the model"><figcaption class="small">{}</figcaption></figure>'
    ).format(sheet, words)


def _numbers(values: Any) -> list[float]:
    if not isinstance(values, Sequence) or isinstance(values, str):
        return []
    return [float(v) for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]


def _x(share: float) -> float:
    return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)


def _y(value: float, low: float, high: float) -> float:
    return round(TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)
