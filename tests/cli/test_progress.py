"""Progress is JSON lines, a bar, or silence."""

import json

import pytest

from offmap.cli.progress import progress


def test_json_events_are_lines_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(True) as tell:
        tell({"event": "score", "done": 1, "total": 2})
        tell({"event": "warning", "message": "größer\n"})
    out, err = capsys.readouterr()
    assert [json.loads(line) for line in out.splitlines()] == [
        {"event": "score", "done": 1, "total": 2},
        {"event": "warning", "message": "größer\n"},
    ]
    assert err == ""


def test_without_a_terminal_only_warnings_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(False) as tell:
        tell({"event": "score", "done": 1, "total": 2})
        tell({"event": "warning", "message": "two files have one name"})
    assert capsys.readouterr() == ("", "offmap: two files have one name\n")


def test_a_terminal_gets_a_bar_on_standard_error(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with progress(False) as tell:
        tell({"event": "score", "done": 1, "total": 2})
        tell({"event": "score", "done": 2, "total": 2})
        tell({"event": "warning", "message": "[bold] is text"})
    out, err = capsys.readouterr()
    assert out == ""
    assert "score" in err
    assert "2/2" in err
    assert "[bold] is text" in err
