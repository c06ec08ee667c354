"""The page of an evaluation: complete, inert, self-contained."""

import base64
import hashlib
import math
import re

import numpy as np

from offmap.core.resampling import Measure
from offmap.report.curves import Curve, draw
from offmap.report.evaluation import Estimated, EvaluationReport, Metric, Rule, Trial

HOSTILE = "<script>alert(1)</script>"
NAMES = ("error", "augrc", "fail_auroc")


def report(name: str = "max_probability", *, strata: int = 2) -> EvaluationReport:
    places = [("all", ""), *((HOSTILE, f"site {i}") for i in range(strata))]
    metrics = [
        Metric(s, v, name, m, Measure(0.25, *((math.nan, math.nan) if m == "augrc" else (0.2, 0.3))), 40, 10, 0)
        for s, v in places
        for m in NAMES
    ]
    rule = Rule(
        confidence=name,
        method="learn_then_test",
        bound=0.05,
        probability=0.95,
        promise="few fail",
        threshold=0.5,
        coverage=0.6,
        risk=0.02,
        n=100,
        tested=75,
        needed=59,
        trials=(Trial("test", 40, 20, 1, 0.01, 0.2, 10), Trial("new", 10, 0, 0, 0.0, 1.0, 10)),
    )
    points = np.linspace(0.01, 1, 100)
    return EvaluationReport(
        title="Accept some",
        sentences=["A sentence."],
        warnings=[f"A warning about {HOSTILE}."],
        facts={"Images": "40"},
        bound=0.05,
        metrics=metrics,
        curves=[Curve(name, points, 1 - points, points * 0.25, points**2 * 0.25)],
        rules=[rule],
        estimates=[Estimated("new", "average_confidence", name, 10, Measure(0.9, 0.8, 0.95), None)],
    )


def test_the_page_is_inert_and_its_one_style_is_allowed() -> None:
    html = report(HOSTILE).html()
    assert "<script" not in html
    assert "style=" not in html
    assert not re.search(r'(src|href)="(?!data:)', html)
    (style,) = re.findall(r"<style>(.*?)</style>", html, re.S)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"&#39;sha256-{digest}&#39;" in html or f"'sha256-{digest}'" in html
    assert html.count("&lt;script&gt;") >= 4


def test_the_page_says_all_there_is() -> None:
    html = report().html()
    for text in (
        "Accept some",
        "A sentence.",
        "few fail",
        "max_probability &gt; 0.5",
        "average_confidence",
        "no labels",
        "0.200 to 0.300",
        "site 1",
    ):
        assert text in html, text
    assert "nan" not in re.sub(r"<style>.*?</style>", "", html, flags=re.S)
    assert "By stratum" not in report(strata=0).html()


def test_the_drawing_names_its_curves_and_stays_in_its_frame() -> None:
    steep = Curve("steep", np.array([0.001, 0.5, 1.0]), np.zeros(3), np.array([1.0, 0.02, 0.03]), np.zeros(3))
    svg = str(draw([steep], error=0.03, bound=0.05))
    assert 'aria-label="Risk over coverage of steep"' in svg
    heights = [float(y) for points in re.findall(r'points="([^"]*)"', svg) for y in re.findall(r",([\d.]+)", points)]
    assert min(heights) >= 40
    assert draw([], error=0.1, bound=0.1) == ""


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    points = np.arange(1, 100_001) / 100_000
    thin = Curve("long", points, -points, points, points).thinned(50)
    assert len(thin.coverage) == 50
    assert thin.coverage[0] == points[0]
    assert thin.coverage[-1] == 1.0


def test_rules_in_words() -> None:
    from dataclasses import replace

    rule = report().rules[0]
    assert replace(rule, threshold=None).accepts == "none"
    assert replace(rule, threshold=-math.inf).accepts == "every assessed image"
    assert replace(rule, confidence="score.knn", threshold=-3.5).accepts == "score.knn < 3.5"
    assert replace(rule, threshold=-math.inf).facts()["threshold"] is None
