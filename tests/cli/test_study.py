"""offmap study from the command line."""

import json
from pathlib import Path

import pytest
import typer.testing
from tests.benchmark.study_world import Quick, write

from offmap.cli import app


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("offmap.benchmark.study_page.open_encoder", lambda *_, **__: Quick())
    path = write(tmp_path)
    path.write_text(path.read_text().replace("seeds = [1, 2]", 'seeds = [1]\nmethods = ["msp", "energy"]'))
    return path


def run(*arguments: object) -> typer.testing.Result:
    return typer.testing.CliRunner().invoke(app, ["study", *(str(a) for a in arguments)])


def test_for_people_and_for_programs(toy: Path, tmp_path: Path) -> None:
    done = run(toy, "--out", tmp_path / "out", "--jobs", 1)
    assert done.exit_code == 0, done.output
    assert "other machine" in done.stdout
    assert "Kendall's tau" in done.stderr
    assert f"All of it: {tmp_path / 'out' / 'index.html'}" in done.stderr
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"features", "index.html", "results.csv", "results.parquet", "study.json"}
    again = run(toy, "--out", tmp_path / "out", "--jobs", 1, "--json")
    last = json.loads(again.stdout.splitlines()[-1])
    assert last["event"] == "done"
    assert set(last["best_task"]) == {"other machine", "damaged", "foot"}
    assert -1 <= last["kendall_tau"] <= 1


@pytest.mark.parametrize(
    ("study", "says"),
    [("chest", "there is no study 'chest'"), ("none.toml", "study none.toml cannot be read"), ("chest-xray", "--data DIR")],
)
def test_what_is_not_there_ends_in_one_line(study: str, says: str, tmp_path: Path) -> None:
    done = run(study, "--out", tmp_path / "out", "--data", tmp_path / "nowhere")
    assert done.exit_code == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_foreign_page_is_not_replaced(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "index.html").write_text("mine")
    done = run(toy, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "was not written by offmap" in done.stderr
