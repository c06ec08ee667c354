"""offmap evaluate from the command line."""

import json
from pathlib import Path

import pytest
import typer.testing

from offmap.cli import app


@pytest.fixture
def preds(tmp_path: Path) -> Path:
    path = tmp_path / "preds.csv"
    lines = [
        f"{i}.png,{'ab'[i % 2]},{0.9 if i % 2 == 0 or i % 12 == 1 else 0.2},{0.1 if i % 2 == 0 or i % 12 == 1 else 0.8},0"
        for i in range(240)
    ]
    path.write_text("path,label,prob.a,prob.b,ood\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


def run(*arguments: object) -> typer.testing.Result:
    return typer.testing.CliRunner().invoke(app, ["evaluate", *(str(a) for a in arguments)])


def test_for_people(preds: Path, tmp_path: Path) -> None:
    done = run("--predictions", preds, "--out", tmp_path / "out", "--repeats", 100, "--risk", 0.2)
    assert done.exit_code == 0, done.output
    assert "max_probability" in done.stdout
    assert "index.html" in done.stderr
    assert (tmp_path / "out" / "index.html").exists()


def test_for_programs(preds: Path, tmp_path: Path) -> None:
    done = run("--predictions", preds, "--out", tmp_path / "out", "--repeats", 100, "--json")
    assert done.exit_code == 0, done.output
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[-1]["event"] == "done"
    assert events[-1]["rules"][0]["confidence"] == "max_probability"
    assert {"stratum", "metric", "estimate"} <= set(events[0])


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--ood-failure", "never"], 2, "'never' must be 'always' or 'wrong'"),
        (["--testing", "holm"], 2, "testing = 'holm'"),
        (["--strata", "sight"], 2, "no column 'sight'"),
        (["--scores", "none.csv"], 3, "cannot be read as a score table"),
        (["--repeats", "5"], 2, "repeats = 5"),
    ],
)
def test_bad_options_end_in_one_line(preds: Path, tmp_path: Path, options: list[str], code: int, says: str) -> None:
    done = run("--predictions", preds, "--out", tmp_path / "out", *options)
    assert done.exit_code == code
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
