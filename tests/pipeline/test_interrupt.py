"""Ctrl-C on a real run: nothing half-written, no process left behind, and the next run goes on from the cache."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from PIL import Image as Pillow
from tests.pipeline.conftest import picture

from offmap.pipeline.gate import Gate


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_interrupt_leaves_nothing_and_the_next_run_resumes(gate: Gate, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(400):
        pixels = picture(i % 20)
        pixels[0, 0], pixels[0, 1] = i % 256, i // 256
        Pillow.fromarray(pixels).save(tmp_path / "in" / f"{i:03d}.png")
    gate.save(tmp_path / "gate")
    out = tmp_path / "out"
    score = [sys.executable, "-c", "from offmap.cli import main; main()", "score", str(tmp_path / "gate"), str(tmp_path / "in")]
    command = [*score, "--out", str(out / "s.csv"), "--jobs", "2", "--json"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_heed_interrupts)
    assert running.stdout is not None
    assert json.loads(running.stdout.readline())["event"] == "score"
    readers = psutil.Process(running.pid).children(recursive=True)
    running.send_signal(signal.SIGINT)
    rest, error = running.communicate(timeout=60)
    assert running.returncode == 130, error
    assert "interrupted" in error
    assert '"done"' not in rest or json.loads(rest.splitlines()[-1])["event"] == "score"
    assert len(readers) == 2
    assert psutil.wait_procs(readers, timeout=10)[1] == []
    assert [path for path in out.rglob("*") if path.is_file()] == []
    kept = _cached(tmp_path / "cache")
    assert 32 <= kept < 400
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["n"] == 400
    assert _cached(tmp_path / "cache") == 400
    assert len((out / "s.csv").read_text().splitlines()) == 401


def _cached(folder: Path) -> int:
    (file,) = folder.rglob("*.sqlite")
    connection = sqlite3.connect(file)
    try:
        return int(connection.execute("SELECT count(*) FROM features").fetchone()[0])
    finally:
        connection.close()
