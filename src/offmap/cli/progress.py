"""How far a command is: a bar on a terminal, JSON lines with ``--json``, silence otherwise."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from offmap.cli.exits import say

Event = Mapping[str, Any]


@contextmanager
def progress(json_lines: bool) -> Iterator[Callable[[Event], None]]:
    """A function that takes progress events ``{"event": "read", "done": 120, "total": 600}``.

    Args:
        json_lines: write every event to standard output instead of drawing a bar.
    """
    if json_lines:
        yield emit
    elif sys.stderr.isatty():
        with _bars() as draw:
            yield draw
    else:
        yield _warn_only


def emit(event: Event) -> None:
    """One event as a line of JSON on standard output."""
    print(json.dumps(event, ensure_ascii=False, allow_nan=False, default=str), flush=True)


def _warn_only(event: Event) -> None:
    if event.get("event") == "warning":
        say(f"offmap: {event['message']}")


@contextmanager
def _bars() -> Iterator[Callable[[Event], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks = {}

        def draw(event: Event) -> None:
            name = str(event.get("event"))
            if name == "warning":
                bars.console.print(f"offmap: {event['message']}", markup=False, highlight=False)
            elif "done" in event:
                if name not in tasks:
                    tasks[name] = bars.add_task(name, total=None)
                bars.update(tasks[name], completed=event["done"], total=event.get("total"))

        yield draw
