"""Tables for people."""

import pytest

from offmap.cli.tables import show


def test_nothing_is_cut_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 150
    show(["item", "bits"], [[long, 1.23456], ["[red]", None]], title="Scores")
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].strip() == "Scores"
    assert any(long in line and line.rstrip().endswith("1.23") for line in lines)
    assert any("[red]" in line for line in lines)
    assert err == ""


def test_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    show(["verdict", "images"], [["Accept", 3]], err=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "Accept" in err


def test_names_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show(["item"], [["a\x1b[2Jb"]])
    assert "\x1b" not in capsys.readouterr().out
