"""offmap methods: what can be put into a recipe."""

from offmap.cli import options
from offmap.cli.progress import emit
from offmap.cli.tables import show


def methods(*, json_lines: options.Json = False) -> None:
    """List detectors, encoders, recipes and prepare steps."""
    found = {"detector": detectors(), "encoder": encoders(), "recipe": recipes(), "prepare": steps()}
    for kind, rows in found.items():
        if json_lines:
            for row in rows:
                emit({"event": kind, **row})
        else:
            show(list(rows[0]), [[", ".join(v) if isinstance(v, list) else v for v in row.values()] for row in rows], title=kind.upper())
    if json_lines:
        emit({"event": "done", **{f"{kind}s": len(rows) for kind, rows in found.items()}})
