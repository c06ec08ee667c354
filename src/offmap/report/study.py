"""A study for people: one page of plots, each with a sentence, that needs no network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from offmap import __version__
from offmap.core.resampling import Measure
from offmap.report.curves import Curve, draw
from offmap.report.templating import environment, policy

WIDTH, HEIGHT = 460, 330
LEFT, RIGHT, TOP, BOTTOM = 66, 18, 30, 62
TASKS = 6
"""Tasks that have a mark of their own."""


@dataclass(frozen=True, slots=True)
class Point:
    """One task and method on one shift.

    Args:
        auroc: how well it finds the shift.
        augrc: mean risk of an undetected wrong answer.
        marks: "" or "detector" or "judge": the best one.
    """

    task: str
    method: str
    auroc: float
    augrc: float
    mark: str = ""


@dataclass(frozen=True, kw_only=True)
class ShiftPart:
    """What is shown of one shift.

    Args:
        kind: in plain words.
        sentence: what is seen.
        points: cells with both numbers.
        curves: risk-coverage of the best detector, the best judge and the answer's own confidence.
        error: share of wrong answers on the test and shifted images together.
        table: AUROC by task and method.
        images: how many, in words.
    """

    name: str
    kind: str
    sentence: str
    points: Sequence[Point]
    curves: Sequence[Curve]
    error: float
    table: Mapping[str, Mapping[str, float]]
    images: str


@dataclass(frozen=True, kw_only=True)
class StudyReport:
    """Everything that the page shows.

    Args:
        title, sentences, warnings, facts: in words.
        tasks: name and a description of each.
        shifts: in order.
        means: AUROC by task and shift, mean over methods.
        best: task that is best, by shift.
        kinds: best task of each kind of shift, with interval, share of resamples in which it is best, and all tasks' means.
        combined: AUROC by combination and shift.
        risk: bound that is drawn.
    """

    title: str
    description: str
    sentences: Sequence[str]
    warnings: Sequence[str]
    facts: Mapping[str, str]
    tasks: Mapping[str, str]
    shifts: Sequence[ShiftPart]
    means: Mapping[str, Mapping[str, float]]
    best: Mapping[str, str]
    kinds: Mapping[str, tuple[str, Measure, float, Mapping[str, float]]]
    combined: Mapping[str, Mapping[str, float]]
    risk: float

    def to_html(self, path: Path) -> None:
        """The page."""
        names = list(self.tasks)
        context = {
            "csp": policy(styles=("page.css", "ranking.css", "evaluation.css", "study.css")),
            "version": __version__,
            "report": self,
            "shade": lambda area: min(9, max(0, int((area - 0.5) * 20))),
            "scatter": lambda part: scatter(part.points, names),
            "risk": lambda part: draw(part.curves, error=part.error, bound=self.risk),
            "bars": [(kind, best, bars(means, names, best)) for kind, (best, _, _, means) in self.kinds.items()],
            "mark": lambda task: mark(names.index(task) % TASKS, 8, 8),
        }
        path.write_text(environment().get_template("study.html.j2").render(context), encoding="utf-8", errors="backslashreplace")


def scatter(points: Sequence[Point], tasks: Sequence[str]) -> Markup:
    """Finding the shift (to the right: better) against undetected wrong answers (down: better); the best of each ringed and named."""
    if not points:
        return Markup("")
    low, high = _ends([p.augrc for p in points])
    left = min(0.5, min(p.auroc for p in points))
    left, right = int(left * 10) / 10, 1.0
    body = []
    for i in range(5):
        x, y = _x(i / 4), _y(i / 4)
        body.append(Markup('<line class="h-grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(_x(0), _x(1), y, y))
        number = f"{low + (high - low) * i / 4:.3f}"
        body.append(Markup('<text class="s-num" x="{}" y="{}" text-anchor="end">{}</text>').format(LEFT - 7, y + 4, number))
        number = f"{left + (right - left) * i / 4:.2f}"
        body.append(Markup('<text class="s-num" x="{}" y="{}" text-anchor="middle">{}</text>').format(x, _y(0) + 20, number))
    title = "finds the shift: AUROC (right is better)"
    body.append(Markup('<text class="s-label" x="{}" y="{}" text-anchor="middle">{}</text>').format(_x(0.5), HEIGHT - 14, title))
    body.append(Markup('<text class="s-label" x="4" y="16">undetected wrong answers: AUGRC (lower is better)</text>'))
    spread = high - low or 1.0
    for p in sorted(points, key=lambda p: bool(p.mark)):
        x, y = _x((p.auroc - left) / (right - left)), _y((p.augrc - low) / spread)
        body.append(mark(tasks.index(p.task) % TASKS, x, y, f"{p.task}, {p.method}: AUROC {p.auroc:.3f}, AUGRC {p.augrc:.3f}"))
        if p.mark:
            body.append(Markup('<circle class="s-ring s-{}" cx="{}" cy="{}" r="10"/>').format(p.mark, x, y))
    label = f"AUROC against AUGRC of {len(points)} combinations of task and method"
    return Markup('<svg class="hist" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, label, Markup("").join(body)
    )


def mark(number: int, x: int | float, y: int | float, title: str = "") -> Markup:
    """The mark of a task: form and colour."""
    at = f"M{round(float(x), 1)},{round(float(y), 1)} "
    forms = (
        "m-5,0 a5,5 0 1,0 10,0 a5,5 0 1,0 -10,0",
        "m-4.5,-4.5 h9 v9 h-9 z",
        "m0,-6 l5.5,10 h-11 z",
        "m0,-6.5 l6,6.5 l-6,6.5 l-6,-6.5 z",
        "m0,6 l5.5,-10 h-11 z",
        "m-6,-2 h4 v-4 h4 v4 h4 v4 h-4 v4 h-4 v-4 h-4 z",
    )
    said = Markup("<title>{}</title>").format(title) if title else Markup("")
    return Markup('<path class="s-mark m{}" d="{}">{}</path>').format(number, at + forms[number], said)


def bars(means: Mapping[str, float], tasks: Sequence[str], best: str) -> Markup:
    """AUROC of each task as a bar from 0.5."""
    line, body = 34, []
    for i, task in enumerate(name for name in tasks if name in means):
        y, area = 10 + line * i, means[task]
        width = round(max(0.0, area - 0.5) * 2 * 220, 1)
        name = "s-bar s-best" if task == best else "s-bar"
        body.append(Markup('<text class="s-task" x="180" y="{}" text-anchor="end">{}</text>').format(y + 16, task))
        body.append(Markup('<rect class="{}" x="190" y="{}" width="{}" height="20"/>').format(name, y, width))
        body.append(Markup('<text class="s-task" x="{}" y="{}">{}</text>').format(196 + width, y + 16, f"{area:.3f}"))
    height = 14 + line * len(body) // 3
    body.append(Markup('<line class="h-tick" x1="190" x2="190" y1="4" y2="{}"/>').format(height - 4))
    return Markup('<svg class="hist" viewBox="0 0 470 {}" role="img" aria-label="AUROC of each task">{}</svg>').format(
        height, Markup("").join(body)
    )


def _ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.01
    return max(0.0, low - margin), high + margin


def _x(place: int | float) -> float:
    return round(float(LEFT + place * (WIDTH - LEFT - RIGHT)), 1)


def _y(height: int | float) -> float:
    return round(float(TOP + (1 - height) * (HEIGHT - TOP - BOTTOM)), 1)
