"""A benchmark for people: one HTML page that needs no network."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offmap import __version__
from offmap.report.ranking import refuse_foreign
from offmap.report.templating import environment, policy

WIDTH = 220
"""Of the bars, in pixels."""

BEST = 8
"""Methods whose AUROC of each pair is shown on the page; the tables have all."""

KINDS = {
    "near": "near: the same kind of image, another disease, site or scanner",
    "covariate": "covariate shift: the same content, made in another way",
    "far": "far: another kind of image",
    "corruption": "corruption: test images that were damaged on purpose",
}


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawing.

    Args:
        path: SVG file.
    """

    title: str
    path: Path

    @property
    def source(self) -> str:
        """The drawing itself, for an ``img``."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.path.read_bytes()).decode('ascii')}"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What the page shows.

    Args:
        summary: one line a method, best first; keys as in ``summary.csv``.
        default: method of the recipe.
        pairs: mean AUROC by pair of sets and method.
        kinds: of each pair.
        told: what tells a pair apart by its files alone, with its AUROC, in a few words.
        warnings, copies, notes: sentences.
        not_run: what, and why.
        facts: JSON values.
    """

    title: str
    subtitle: str
    summary: Sequence[Mapping[str, Any]]
    default: str
    pairs: Mapping[str, Mapping[str, float]]
    kinds: Mapping[str, str]
    told: Mapping[str, str]
    warnings: Sequence[str]
    copies: Sequence[str]
    notes: Sequence[str]
    not_run: Sequence[tuple[str, str]]
    plots: Sequence[Plot]
    facts: Mapping[str, Any]

    @property
    def headline(self) -> str:
        """The kind of set that orders the methods."""
        return next((kind for kind in KINDS if any(kind in line for line in self.summary)), "near")

    def to_html(self, path: Path) -> None:
        """The page.

        Raises:
            ConfigError: another page lies there, which offmap did not write.
        """
        refuse_foreign(path)
        kind = self.headline
        lows = [line[f"{kind}_lo"] for line in self.summary if kind in line]
        floor = max(0.0, min([0.5, *lows]))
        groups = {KINDS[k]: [name for name in self.pairs if self.kinds[name] == k] for k in KINDS}
        context = {
            "csp": policy(styles=("page.css", "ranking.css", "comparison.css")),
            "version": __version__,
            "page": self,
            "kind": kind,
            "shown": [k for k in KINDS if any(k in line for line in self.summary)],
            "groups": {title: names for title, names in groups.items() if names},
            "best": [line["method"] for line in self.summary[:BEST]],
            "scale": lambda area: round(WIDTH * (max(area, floor) - floor) / (1 - floor), 1),
            "shade": lambda area: min(9, max(0, int((area - 0.5) * 20))),
            "width": WIDTH,
            "floor": floor,
        }
        path.write_text(environment().get_template("comparison.html.j2").render(context), encoding="utf-8", errors="backslashreplace")
