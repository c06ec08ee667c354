"""A ranking of detectors for people and for programs: one HTML page that needs no network, and a CSV table."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offmap import __version__
from offmap.core.errors import ConfigError
from offmap.report.templating import GENERATOR, environment, policy

COLUMNS = ("rank", "method", "status", "reason", "mean", "mean_lo", "mean_hi", "local", "whole", "form_auroc", "map", "passes")
COSTS = ("fit_s", "score_ms_per_item", "state_mb")
WIDTH = 150
"""Of the bars, in pixels."""
BEST = 5
"""Detectors whose AUROC of each kind is shown on the page, beside the recommended and the recipe's own; the table has all."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One detector.

    Args:
        rank: from 1; None where it was not run.
        reason: why it was not run.
        mean, low, high: mean of ``local`` and ``whole`` with its 95 % interval.
        local, whole: mean AUROC of anomalies of a part, and of the whole image.
        form: AUROC of the file form that is farthest from 0.5.
        map: whether it draws one.
        areas: AUROC by kind of anomaly.
        forms: AUROC by file form.
        chosen: whether it is recommended.
        own: whether it is the detector of the recipe that was started from.
    """

    method: str
    passes: str
    reason: str = ""
    rank: int | None = None
    mean: float = 0.0
    low: float = 0.0
    high: float = 0.0
    local: float = 0.0
    whole: float = 0.0
    form: float = 0.5
    map: bool = False
    fit_s: float = 0.0
    score_ms: float = 0.0
    state_mb: float = 0.0
    areas: Mapping[str, float] = field(default_factory=dict)
    forms: Mapping[str, float] = field(default_factory=dict)
    chosen: bool = False
    own: bool = False

    def row(self) -> dict[str, Any]:
        """Cells of the CSV table; empty ones where it was not run."""
        cells: dict[str, Any] = {
            "method": self.method,
            "status": "ok" if self.rank else "not_run",
            "reason": self.reason,
            "passes": self.passes,
        }
        if self.rank is None:
            return cells
        numbers = {"mean": self.mean, "mean_lo": self.low, "mean_hi": self.high, "local": self.local, "whole": self.whole}
        cells |= {"rank": self.rank, "map": "yes" if self.map else "no"}
        cells |= {k: round(v, 4) for k, v in (numbers | {"form_auroc": self.form}).items()}
        cells |= {"fit_s": round(self.fit_s, 3), "score_ms_per_item": round(self.score_ms, 4), "state_mb": round(self.state_mb, 4)}
        return cells | {f"auroc.{kind}": round(area, 4) for kind, area in (*self.areas.items(), *self.forms.items())}


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """All detectors and what was decided.

    Args:
        lines: the best first, those that were not run last.
        title: the decision in one line.
        sentences: why.
        warnings: what to know before relying on it.
        facts: how it was measured, term and text.
        groups: kinds of anomalies by heading.
    """

    lines: Sequence[Line]
    title: str
    sentences: Sequence[str]
    warnings: Sequence[str]
    facts: Mapping[str, str]
    groups: Mapping[str, Sequence[str]]

    @property
    def ran(self) -> list[Line]:
        """Lines with numbers."""
        return [line for line in self.lines if line.rank is not None]

    def to_csv(self, path: Path) -> None:
        """The table, one row a detector."""
        rows = [line.row() for line in self.lines]
        kinds = list(dict.fromkeys(key for row in rows for key in row if key.startswith("auroc.")))
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [*COLUMNS, *COSTS, *kinds], restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    def to_html(self, path: Path) -> None:
        """The page."""
        ran = self.ran
        floor = min(0.5, *(line.low for line in ran)) if ran else 0.5
        context = {
            "csp": policy(styles=("page.css", "ranking.css")),
            "version": __version__,
            "ranking": self,
            "scale": lambda area: round(WIDTH * (area - floor) / (1 - floor), 1),
            "shade": lambda area: min(9, max(0, int((area - 0.5) * 20))),
            "width": WIDTH,
            "floor": floor,
            "best": [line for i, line in enumerate(ran) if i < BEST or line.chosen or line.own],
        }
        path.write_text(environment().get_template("ranking.html.j2").render(context), encoding="utf-8", errors="backslashreplace")


def refuse_foreign(page: Path) -> None:
    """A page never replaces one that offmap did not write.

    Raises:
        ConfigError: another page lies there, or a folder of that name.
    """
    if page.is_dir():
        raise ConfigError(f"{str(page)!r} is a folder, where the page would be written; choose another folder")
    if page.exists():
        with page.open("rb") as file:
            ours = GENERATOR in file.read(4096)
        if not ours:
            raise ConfigError(f"{str(page)!r} was not written by offmap and would be replaced; choose another folder")
