"""The documents say what is there."""

import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from offmap.cli import app
from offmap.core import registry
from offmap.core.detector import Detector
from offmap.core.types import REASONS
from offmap.report.row import FIXED

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
REFERENCE = ROOT / "docs" / "reference"


def commands(group: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*prefix, name))
        else:
            yield (*prefix, name), command


def known() -> dict[tuple[str, ...], set[str]]:
    from typer.main import get_command

    return {name: {o for p in c.params for o in p.opts} | {"--help"} for name, c in commands(get_command(app))}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_generated_pages_are_up_to_date() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "scripts" / "docs"), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run scripts/docs: {done.stdout}{done.stderr}"


def test_every_command_is_in_the_reference() -> None:
    text = (REFERENCE / "cli.md").read_text(encoding="utf-8")
    assert [name for name in known() if f"## offmap {' '.join(name)}\n" not in text] == []


def test_every_detector_has_a_page() -> None:
    pages = {p.stem for p in (ROOT / "docs" / "methods").glob("*.md")} - {"README"}
    assert pages == set(registry.names("score"))


@pytest.mark.parametrize("name", registry.names("score"))
def test_a_detector_says_what_it_costs_and_when_it_fails(name: str) -> None:
    paragraphs = (inspect.getdoc(registry.load("score", name, Detector)) or "").partition("Args:")[0].split("\n\n")
    assert any(p.startswith("Fails ") for p in paragraphs), f"{name}: no paragraph of its docstring begins with 'Fails'"
    assert any(re.search(r"\b(state|costs?)\b", p, re.IGNORECASE) for p in paragraphs), f"{name}: cost and state are not told"


def test_every_column_and_reason_is_described() -> None:
    text = (REFERENCE / "columns.md").read_text(encoding="utf-8")
    assert [column for column in FIXED if f"| `{column}` |" not in text] == []
    assert [code for code, meaning in REASONS.items() if f"| `{code}` | {meaning} |" not in text] == []


def shown_commands(page: Path) -> Iterator[list[str]]:
    """Every command line of offmap in a page's code blocks."""
    blocks = re.findall(r"^```(?:\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        line = line.strip().removeprefix("$ ")
        if re.match(r"(\.venv/bin/)?offmap [a-z]", line):
            yield shlex.split(line.partition("  #")[0])[1:]


HAND_WRITTEN = [p for p in PAGES if p != REFERENCE / "cli.md"]


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=name_of)
def test_commands_that_are_shown_exist(page: Path) -> None:
    there = known()
    for words in shown_commands(page):
        name = next((n for n in there if tuple(words[: len(n)]) == n), None)
        assert name is not None, f"offmap {' '.join(words)}: no such command"
        options = {w.partition("=")[0] for w in words if w.startswith("--")}
        assert options <= there[name], f"offmap {' '.join(words)}: {options - there[name]}"


def test_scripts_that_are_shown_exist() -> None:
    for page in PAGES:
        for script in re.findall(r"(?<![\w/])(scripts/[a-z]+|\.ci/run)\b", page.read_text(encoding="utf-8")):
            path = ROOT / script
            assert path.is_file(), f"{name_of(page)}: {script}"
            assert path.stat().st_mode & 0o111, f"{script} is not executable"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    targets = [t for t in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:", t)]
    for target in targets:
        path, _, anchor = target.partition("#")
        linked = (page.parent / path) if path else page
        assert linked.exists(), f"{name_of(page)}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}, f"{name_of(page)}: {target}"


def test_readme_begins_with_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first = text.index("scripts/demo")
    assert first < text.index("scripts/test")
    assert "not a medical device" in text.lower()
