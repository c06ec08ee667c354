"""One line a method."""

import numpy as np
import pytest

from offmap.benchmark.results import Results
from offmap.benchmark.summary import summarise

PAIRS = {("x", "o"): "near", ("y", "o"): "near"}
ROW = {"id_set": "x", "status": "ok", "fit_s": 1.0, "score_ms_per_item": 1.0, "peak_mb": 1.0, "state_mb": 1.0, "passes": "1F"}


def results(values: dict[tuple[str, str], list[float]]) -> Results:
    """Results of methods on pairs that are named by their in-distribution set."""
    found = {(method, (own, "o")): areas for (method, own), areas in values.items()}
    rows = [{**ROW, "method": method} for method in dict.fromkeys(method for method, _ in values)]
    return Results(rows, {key: np.full(20, np.mean(areas)) for key, areas in found.items()}, found)


def test_a_method_that_misses_a_seed_has_no_mean_beside_those_that_have_all() -> None:
    lines = summarise(results({("a", "x"): [0.9, 0.8], ("a", "y"): [0.7, 0.6], ("b", "x"): [0.95], ("b", "y"): [0.9, 0.9]}), PAIRS)
    assert [line["method"] for line in lines] == ["a", "b"]
    assert lines[0]["near"] == pytest.approx(0.75)
    assert lines[0]["near_sd"] == pytest.approx(np.std([0.8, 0.7], ddof=1))
    assert "near" not in lines[1]


def test_pairs_of_different_numbers_of_seeds_count_alike() -> None:
    (line,) = summarise(results({("a", "x"): [0.9, 0.7], ("a", "y"): [0.6]}), PAIRS)
    assert line["near"] == pytest.approx(0.7)
