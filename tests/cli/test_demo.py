"""The demonstration, on small data."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import typer.testing

from offmap.cli import app, demo
from offmap.datasets import local
from offmap.datasets.local import DemoData


@pytest.fixture
def small(tmp_path: Path) -> DemoData:
    """Arrays as in MedMNIST: smooth pictures, and noise."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:48, :48] / 48
    waves = [np.sin(2 * np.pi * (y * a + x * b)) for a, b in rng.uniform(0.5, 1.5, (50, 2))]
    smooth = np.stack([np.uint8(127 + 80 * w + rng.normal(0, 4, w.shape)) for w in waves])
    noise = rng.integers(0, 255, (8, 48, 48, 3), dtype=np.uint8)
    place = tmp_path / "sets.npz"
    np.savez(place, fit=smooth[:40], unseen=smooth[40:], noise=noise)
    score = {"unseen": [f"{place}::unseen"], "noise": [f"{place}::noise"]}
    return DemoData("Drawn waves.", [f"{place}::fit"], score, {"unseen": "in-distribution", "noise": "far"})


def test_demo_writes_a_gate_scores_and_a_page(small: DemoData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "demo_sets", lambda **_: small)
    out = tmp_path / "out"
    done = typer.testing.CliRunner().invoke(app, ["demo", "--out", str(out), "--jobs", "1"])
    assert done.exit_code == 0, done.stderr
    assert done.stderr.startswith("Drawn waves.")
    assert str(out / "report" / "index.html") in done.stdout
    assert (out / "report" / "index.html").exists()
    assert (out / "gate" / "manifest.json").exists()
    with (out / "scores.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["meta.set"] for row in rows] == ["unseen"] * 10 + ["noise"] * 8
    found = {row["set"]: row for row in demo.summary(out / "scores.csv", small.kinds)}
    assert found["noise"]["n"] == 8
    assert found["noise"]["median_bits"] > found["unseen"]["median_bits"]


def test_phantoms_are_drawn_where_there_is_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "PHANTOMS", 3)
    monkeypatch.setattr(demo, "EACH", 2)
    drawn = demo.draw(tmp_path)
    assert {kind: len(paths) for kind, paths in drawn.items()} == {"id": 3, "near": 2, "far": 2}
    assert all(path.is_file() for paths in drawn.values() for path in paths)


def test_data_lists_what_can_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    run = typer.testing.CliRunner().invoke
    monkeypatch.setattr(local, "find", lambda: None)
    assert "pneumoniamnist" in run(app, ["data", "list"]).stdout
    *sets, last = [json.loads(line) for line in run(app, ["data", "list", "--json"]).stdout.splitlines()]
    assert last == {"event": "done", "sets": len(sets), "local": 0}
    unknown = run(app, ["data", "get", "pneumoniamnits"])
    assert unknown.exit_code == 2
    assert "did you mean 'pneumoniamnist'" in unknown.stderr


def test_data_get_tells_where_the_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from offmap.datasets import fetch

    def arrives(name: str, *, folder: Path | None, progress: fetch.Progress) -> Path:
        for received in (0, 500_000, 1_500_000, 2_000_000):
            progress(received, 2_000_000)
        return tmp_path / f"{name}.npz"

    monkeypatch.setattr(fetch, "get", arrives)
    done = typer.testing.CliRunner().invoke(app, ["data", "get", "breastmnist", "--json"])
    *downloads, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert [e["done"] for e in downloads] == [0, 1_500_000, 2_000_000]
    assert last == {"event": "done", "path": str(tmp_path / "breastmnist.npz")}
