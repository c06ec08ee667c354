"""Writing results: a tidy CSV, and a Markdown table that says how, where and when it was made."""

import csv
import datetime
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from offmap.pipeline.gate import cores

PACKAGES = ("torch", "numpy", "scipy", "Pillow", "transformers", "scikit-learn")


@dataclass(frozen=True)
class Made:
    """Where and when a table was made, and by which command."""

    command: str
    date: str
    machine: str
    versions: str

    @classmethod
    def now(cls) -> "Made":
        """This run."""
        words = [
            "python",
            *(
                shlex.quote(w)
                for w in (
                    f"benchmarks/{Path(sys.argv[0]).name}" if "peers" not in sys.argv[0] else f"benchmarks/peers/{Path(sys.argv[0]).name}",
                    *sys.argv[1:],
                )
            ),
        ]
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        installed = [f"{name} {version(name)}" for name in PACKAGES if version(name)]
        return cls(
            " ".join(words),
            date,
            f"{processor()}, {cores()} cores",
            f"offmap {version('offmap')}, Python {platform.python_version()}, {', '.join(installed)}",
        )

    def lines(self) -> list[str]:
        """For people."""
        return [f"`{self.command}`", "", f"{self.date}; {self.machine}; {self.versions}."]


def version(name: str) -> str:
    """Version of an installed package, empty where it is absent."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def processor() -> str:
    """The processor's name."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        return next(line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def text(value: object) -> str:
    """A cell."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if hasattr(value, "dtype") or isinstance(value, float):
        return f"{float(str(value)):.4f}"
    return str(value)


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Rows of one table; columns are those of all rows, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([[text(row.get(name, "")) for name in columns] for row in rows])


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a table; none where it was not made."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def markdown(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """A table."""
    if not rows:
        return ["(no rows)"]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join(text(row.get(name, "")) for name in columns) + " |" for row in rows]


def write_markdown(path: Path, title: str, body: Sequence[str], made: Made) -> None:
    """A page of results."""
    path.write_text("\n".join([f"# {title}", "", *made.lines(), "", *body, ""]), encoding="utf-8")
    print(f"wrote {path}")
