"""The drawing of scores."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from offmap.report.histogram import Histogram, axis, draw

FLOATS = hnp.arrays(np.float64, st.integers(0, 30), elements=st.floats(-1e6, 1e6, width=32))


def texts(svg: str) -> list[str]:
    return ["".join(e.itertext()) for e in ET.fromstring(svg).iter("text")]  # noqa: S314 (our own drawing)


def outline(svg: str, name: str) -> list[tuple[float, float]]:
    """Heights of the steps of one area, in pixels above the base line."""
    path = next(e.attrib["d"] for e in ET.fromstring(svg).iter("path") if e.attrib["class"] == name)  # noqa: S314
    steps = [step.split("H") for step in path.removesuffix("Z").split("V")[1:-1]]
    base = float(path.rsplit("V", 1)[1].removesuffix("Z"))
    return [(base - float(y), float(x)) for y, x in steps]


def test_heights_are_shares() -> None:
    rng = np.random.default_rng(0)
    calibration, scored = rng.normal(size=500), rng.normal(1.0, 1.0, size=80)
    svg = draw(Histogram(calibration, review=1.6), scored)
    scale = axis(calibration, scored)
    counts = np.histogram(scale.place(scored), bins=48, range=(0, 1))[0]
    heights = np.array([h for h, _ in outline(svg, "h-new")])
    np.testing.assert_allclose(heights / heights.sum(), counts / counts.sum(), atol=1e-3)


def test_thresholds_are_marked_where_they_lie() -> None:
    calibration = np.linspace(0, 10, 200)
    svg = draw(Histogram(calibration, review=4.0, reject=None), np.linspace(0, 10, 20))
    (line,) = [e for e in ET.fromstring(svg).iter("line") if e.attrib["class"].startswith("h-line")]  # noqa: S314
    places = {float(e.attrib["x"]): e.text for e in ET.fromstring(svg).iter("text") if e.attrib.get("text-anchor") == "middle"}  # noqa: S314
    tick = next(x for x, text in places.items() if text == "4")
    assert float(line.attrib["x1"]) == pytest.approx(tick, abs=0.2)
    assert "review →" in texts(svg)
    assert not any("reject" in t for t in texts(svg))


@pytest.mark.parametrize(
    ("scored", "name"),
    [([0.5, 1.2], "linear"), ([50.0, 900.0], "log"), ([-900.0, 900.0], "compressed")],
)
def test_the_axis_suits_the_scores(scored: list[float], name: str) -> None:
    scale = axis(np.linspace(0.5, 1.5, 100), np.array(scored))
    assert scale.name == name
    places = scale.place(np.array([*scored, *scale.ticks]))
    assert places.min() >= 0
    assert places.max() <= 1
    assert len(scale.ticks) >= 3
    assert (np.diff(scale.place(np.array(scale.ticks))) > 0).all()


@settings(max_examples=60, deadline=None)
@given(calibration=FLOATS, scored=FLOATS)
def test_any_finite_scores_can_be_drawn(calibration: np.ndarray, scored: np.ndarray) -> None:
    svg = draw(Histogram(calibration, 0.0, 1.0), scored)
    if calibration.size + scored.size == 0:
        assert svg == ""
        return
    assert "nan" not in svg
    assert "style=" not in svg
    for element in ET.fromstring(svg).iter():  # noqa: S314
        for key in ("x", "x1", "x2"):
            assert -1 <= float(element.attrib.get(key, 0)) <= 761
