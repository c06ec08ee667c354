"""Every way out of a command: one line on standard error and an exit code.

0 done; 1 a fault in offmap itself or of the machine; 2 usage; 3 no usable data; 4 gate refused; 130 interrupted.
The text of an unexpected exception may hold patient data, so only its type and its place are shown.
"""

import errno
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from offmap.core.errors import OODError
from offmap.report.words import printable

FAULT = 1
INTERRUPTED = 130
PACKAGE = Path(__file__).resolve().parents[1]


class Guarded(TyperGroup):
    """A group of commands whose errors become one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for.

        Raises:
            typer.Exit: with the code of the table above.
        """
        if debugging():
            return super().invoke(ctx)
        with warnings.catch_warnings():
            quiet()
            return self._guarded(ctx)

    def _guarded(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except OODError as error:
            say(f"{speaker()}: {error}")
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            say(f"{speaker()}: interrupted; nothing half-written is left")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if type(error).__module__.partition(".")[0] in ("click", "typer") or getattr(error, "errno", None) == errno.EPIPE:
                raise
            say(f"{speaker()}: {describe(error)}")
            raise typer.Exit(FAULT) from None


def speaker() -> str:
    """Whose message it is: of which process, where ``torchrun`` started several."""
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    return f"offmap (process {os.environ.get('RANK', '0')})" if several else "offmap"


def debugging() -> bool:
    """Whether ``OFFMAP_DEBUG=1`` asks for tracebacks (they may hold patient data)."""
    return os.environ.get("OFFMAP_DEBUG", "") not in ("", "0")


def quiet() -> None:
    """Keep warnings and log lines of other packages, which quote the files' contents, off the terminal."""
    import logging

    warnings.simplefilter("ignore")
    if not logging.root.handlers:
        logging.root.addHandler(logging.NullHandler())


def describe(error: Exception) -> str:
    """Type and place of an unexpected error, and the system's own words for its number; never its message."""
    frames = [(Path(frame.f_code.co_filename), line) for frame, line in traceback.walk_tb(error.__traceback__)]
    inside = [f"offmap/{path.relative_to(PACKAGE).as_posix()}:{line}" for path, line in frames if path.is_relative_to(PACKAGE)]
    place = inside[-1] if inside else "an unknown place"
    number = error.errno if isinstance(error, OSError) else None
    words = f" ({os.strerror(number)})" if number else ""
    hint = "" if number else ". OFFMAP_DEBUG=1 shows the traceback, which may hold patient data"
    return f"{type(error).__name__}{words} in {place}{hint}"


def say(message: str) -> None:
    """A message for people, on standard error."""
    print(printable(message), file=sys.stderr, flush=True)
