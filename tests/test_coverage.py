"""The page that compares libraries counts the methods that are there."""

import subprocess
import sys
from pathlib import Path

from offmap.core import registry
from offmap.core.detector import Detector

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "peers" / "coverage.py"


def test_the_page_is_up_to_date() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_it_names_every_method_and_their_number() -> None:
    own = registry.load_all("score", Detector)
    text = (ROOT / "docs" / "concepts" / "coverage.md").read_text(encoding="utf-8")
    assert f"offmap has {len(own)} detectors" in text
    assert [name for name in own if f"| {name} | [{name}](../methods/{name}.md) |" not in text] == []
