"""The page of a study: complete, inert, self-contained."""

import base64
import hashlib
import math
import re
from pathlib import Path

import numpy as np

from offmap.core.resampling import Measure
from offmap.report.curves import Curve
from offmap.report.study import Point, ShiftPart, StudyReport, bars, mark, scatter

HOSTILE = "<script>alert(1)</script>"
TASKS = {HOSTILE: "column 'a'", "flip": "made from the images"}


def part(name: str, *, judged: bool = True) -> ShiftPart:
    cells = [(task, method) for task in TASKS for method in ("msp", "energy")]
    points = [
        Point(task, method, 0.5 + 0.1 * i, 0.2 - 0.01 * i, ("detector", "", "", "judge")[i]) for i, (task, method) in enumerate(cells)
    ]
    share = np.linspace(0.01, 1, 100)
    return ShiftPart(
        name=name,
        kind="changes in how images are taken",
        sentence=f"See {HOSTILE}.",
        points=points if judged else [],
        curves=[Curve("best detector", share, -share, 0.3 * share, 0.3 * share**2)] if judged else [],
        error=0.3 if judged else math.nan,
        table={task: {"msp": 0.5, "energy": 0.91} for task in TASKS},
        images="10 changed images beside 20 others",
    )


def report() -> StudyReport:
    means = {task: {"noise": 0.61, "site": 0.72 + 0.1 * i} for i, task in enumerate(TASKS)}
    return StudyReport(
        title="The best task depends on the kind of change",
        description="Bright spots.",
        sentences=[f"One {HOSTILE}."],
        warnings=["Two labels go together."],
        facts={"Images": "10 to train on"},
        tasks=TASKS,
        shifts=[part("noise"), part("site", judged=False)],
        means=means,
        best={"noise": HOSTILE, "site": "flip"},
        kinds={"how images are taken": (HOSTILE, Measure(0.6, 0.5, 0.7), 0.9, dict.fromkeys(TASKS, 0.6))},
        combined={"all: mean": {"noise": 0.7, "site": 0.4}},
        risk=0.1,
    )


def test_the_page_is_whole_and_nothing_in_it_runs(tmp_path: Path) -> None:
    report().to_html(tmp_path / "index.html")
    page = (tmp_path / "index.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert 'name="generator" content="offmap' in page
    style = re.findall(r"<style>(.*?)</style>", page, re.S)
    assert len(style) == 1
    digest = base64.b64encode(hashlib.sha256(style[0].encode()).digest()).decode()
    assert f"sha256-{digest}" in page
    assert not re.search(r"\sstyle=|\son\w+=|https?://", page.replace("http://www.w3.org", ""))
    for text in ("Bright spots.", "Two labels go together.", "0.610", "0.820", "10 to train on", "all: mean", "best detector"):
        assert text in page
    assert page.count("<section") == page.count("</section>")
    assert page.count('class="says"') >= 5


def test_marks_lie_where_the_numbers_are() -> None:
    points = [Point("a", "msp", 0.5, 0.3), Point("b", "msp", 1.0, 0.1, "detector")]
    drawn = str(scatter(points, ["a", "b"]))
    (x0, y0), (x1, y1) = ((float(x), float(y)) for x, y in re.findall(r'class="s-mark m\d" d="M([\d.]+),([\d.]+)', drawn))
    assert (x0, x1) == (66.0, 442.0)
    assert y1 > y0
    assert drawn.count("s-ring") == 1
    assert "a, msp: AUROC 0.500, AUGRC 0.300" in drawn
    assert scatter([], ["a"]) == ""
    assert "nan" not in str(scatter(points[:1], ["a"]))


def test_bars_begin_at_a_coin_toss_and_the_best_is_marked() -> None:
    drawn = str(bars({"a": 0.4, "b": 1.0}, ["a", "b"], "b"))
    widths = [float(width) for width in re.findall(r'width="([\d.]+)"', drawn)]
    assert widths == [0.0, 220.0]
    assert drawn.count("s-best") == 1
    assert len({str(mark(i, 0, 0)) for i in range(6)}) == 6
