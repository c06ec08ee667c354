"""How networks were trained, as pictures on the page: losses, the criterion of the checkpoints, and what a person should look at."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from offmap.report.words import number

WIDTH, HEIGHT = 760, 292
LEFT, RIGHT, TOP, BOTTOM = 84, 14, 56, 44
POINTS = 200
"""Points a line has at most, beside its last."""

LOSSES = {"loss": "training images", "held_out_loss": "unseen images"}
CRITERIA = {
    "drawn_anomalies_auroc": "AUROC of anomalies drawn into unseen images: 1 = all found, 0.5 = chance",
    "held_out_task_auroc": "AUROC of a task that trains nothing: 1 = all found, 0.5 = chance",
    "validation_auroc": "AUROC of the classes of unseen images: 1 = all right, 0.5 = chance",
    "student_agreement": "rank correlation of student and teacher on unseen images: 1 = same order",
}
"""By what checkpoints are chosen."""

COURSES = {
    "held_out_loss": "Loss on unseen images",
    "loss": "Loss",
    "drawn_anomalies_auroc": "AUROC of drawn anomalies",
    "held_out_task_auroc": "AUROC of the held-out task",
    "student_agreement": "Agreement of student and teacher",
}
"""What changes over a training, longest names first where one ends as another does."""

STEPS = "checked_steps"
SAMPLES = "Drawn by the model from noise. They should look like the training images, and not all alike."
PNG = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Args:
        at: steps, rising.
        values: at these.
        name: in words.
    """

    at: Sequence[float]
    values: Sequence[float]
    name: str


def figure(training: Mapping[str, Any]) -> Markup:
    """Curves of each network, and pictures; empty where the card has neither."""
    return curves(training) + pictures(training)


def curves(training: Mapping[str, Any]) -> Markup:
    """A chart of the losses of each network that was trained, and one of each criterion."""
    unit = "epoch" if "validation_auroc" in training else "step"
    out = [
        chart(
            _lines(training, {before + name: words for name, words in LOSSES.items()}, before + STEPS),
            f"Loss of the {before.rstrip('_').replace('_', ' ') or 'network'}",
            unit=unit,
            kept=None if before else _kept(training),
        )
        for before in _networks(training)
    ]
    for name, words in CRITERIA.items():
        steps = "student_" + STEPS if name.startswith("student_") else STEPS
        kept = None if name.startswith("student_") else _kept(training)
        out.append(chart(_lines(training, {name: ""}, steps), words[0].upper() + words[1:], unit=unit, kept=kept, ends=(0.5, 1.0)))
    return Markup("").join(out)


def course(key: str) -> str:
    """``codec_loss`` as "Loss of the codec"; empty for what is no course."""
    for name, term in COURSES.items():
        if key == name:
            return term
        if key.endswith("_" + name):
            return f"{term} of the {key[: -len(name) - 1].replace('_', ' ')}"
    return ""


def numbers(values: Any) -> list[float]:
    """Those among the values of a card's list; empty where it is none."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        return []
    return [float(v) for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]


def _networks(training: Mapping[str, Any]) -> list[str]:
    """What stands before the facts of each network, that of the gate first."""
    ends = [key[: -len("loss")] for key in training if key.endswith("loss") and not key.endswith("held_out_loss")]
    return sorted((name for name in ends if name == "" or name.endswith("_")), key=bool)


def _kept(training: Mapping[str, Any]) -> float | None:
    found = numbers([training.get("kept_step", training.get("kept_epoch"))])
    return found[0] if found else None


def _lines(training: Mapping[str, Any], names: Mapping[str, str], steps: str) -> list[Line]:
    at, out = numbers(training.get(steps)), []
    for key, words in names.items():
        values = numbers(training.get(key))
        places = at if len(at) == len(values) else [float(i + 1) for i in range(len(values))]
        if len(values) > 1:
            shown = [*range(0, len(values) - 1, -(-len(values) // POINTS)), len(values) - 1]
            out.append(Line([places[i] for i in shown], [values[i] for i in shown], words))
    return out


def chart(lines: Sequence[Line], title: str, *, unit: str = "step", kept: float | None = None, ends: tuple[float, ...] = ()) -> Markup:
    """Lines over the steps of a training, as an ``<svg>`` element; empty where there is none.

    Args:
        unit: of the steps.
        kept: step that is marked.
        ends: values that the axis holds in any case.
    """
    if not lines:
        return Markup("")
    values = [*ends, *(value for line in lines for value in line.values)]
    low, high = min(values), max(values)
    high = high if high > low else low + 1.0
    first, last = min(line.at[0] for line in lines), max(line.at[-1] for line in lines)
    last = last if last > first else first + 1.0

    def x(step: float) -> float:
        return round(LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    marks = [_level(y(value), value) for value in (low, (low + high) / 2, high)]
    if kept is not None and first <= kept <= last:
        marks += _mark(x(kept))
    for i, line in enumerate(lines):
        points = " ".join(f"{x(step)},{y(value)}" for step, value in zip(line.at, line.values, strict=True))
        marks.append(Markup('<polyline class="t-line t{}" points="{}"/>').format(i, points))
        if line.name:
            sign = ("\u2014", "- -")[i % 2]
            marks.append(Markup('<text class="h-num" x="{}" y="20">{} {}</text>').format(LEFT + 250 * i, sign, line.name))
    marks += [_step(x(first), f"{unit} {number(first)}", "start"), _step(x(last), number(last), "end")]
    drawn = Markup('<svg class="hist" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, title, Markup("").join(marks)
    )
    return Markup('<figure class="curve"><figcaption class="small">{}</figcaption>{}</figure>').format(title, drawn)


def _level(y: float, value: float) -> Markup:
    line = Markup('<line class="h-grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(LEFT, WIDTH - RIGHT, y, y)
    return line + Markup('<text class="h-num" x="{}" y="{}" text-anchor="end">{}</text>').format(LEFT - 8, y + 5, number(value))


def _mark(x: float) -> list[Markup]:
    anchor = "end" if x > WIDTH / 2 else "start"
    line = Markup('<line class="h-tick" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(x, x, TOP, HEIGHT - BOTTOM)
    words = Markup('<text class="h-mark" x="{}" y="{}" text-anchor="{}">kept</text>')
    return [line, words.format(x + (-4 if anchor == "start" else 4), TOP - 8, anchor)]


def _step(x: float, words: str, anchor: str) -> Markup:
    return Markup('<text class="h-num" x="{}" y="{}" text-anchor="{}">{}</text>').format(x, HEIGHT - BOTTOM + 24, anchor, words)


def pictures(training: Mapping[str, Any]) -> Markup:
    """The sheets of the card, each with its caption."""
    given = training.get("sheets")
    sheets = [s for s in given if isinstance(s, Mapping)] if isinstance(given, Sequence) and not isinstance(given, str) else []
    found = [(s.get("picture"), str(s.get("caption", ""))) for s in sheets]
    return sheets_of([*found, (training.get("samples"), SAMPLES)])


def sheets_of(given: Sequence[tuple[Any, str]]) -> Markup:
    """Pictures with captions; what is no PNG is left out."""
    return Markup("").join(
        Markup('<figure class="samples"><img src="{}" alt="{}"><figcaption class="small">{}</figcaption></figure>').format(
            picture, caption, caption
        )
        for picture, caption in given
        if isinstance(picture, str) and PNG.fullmatch(picture)
    )
