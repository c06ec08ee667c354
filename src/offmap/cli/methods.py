"""offmap methods: what can be put into a recipe."""

import inspect
from typing import Any

from offmap.cli import options
from offmap.cli.progress import emit
from offmap.cli.tables import show

Row = dict[str, Any]
ENCODERS = {"builtin": "encoder", "hub:NAME_OR_DIR": "hub", "classifier:FILE": "classifier"}
"""What ``--encoder`` takes, and the file of ``offmap/represent`` that answers it."""


def methods(*, json_lines: options.Json = False) -> None:
    """List detectors, encoders, recipes and prepare steps."""
    found = {"detectors": detectors(), "encoders": encoders(), "recipes": recipes(), "steps": steps()}
    if not json_lines:
        for kind, rows in found.items():
            show(list(rows[0]), [[_shown(value) for value in row.values()] for row in rows], title=kind.capitalize())
        return
    for kind, rows in found.items():
        for row in rows:
            emit({"event": kind.removesuffix("s"), **row})
    emit({"event": "done", **{kind: len(rows) for kind, rows in found.items()}})


def detectors() -> list[Row]:
    """Every detector with what it needs and costs."""
    from offmap.core import registry
    from offmap.core.detector import Detector, Localiser

    return [
        {
            "name": name,
            "needs": sorted(cls().needs),
            "labels": "label" in cls().fit_needs,
            "passes": cls.passes,
            "map": issubclass(cls, Localiser),
            "reference": cls.reference,
        }
        for name, cls in registry.load_all("score", Detector).items()
    ]


def encoders() -> list[Row]:
    """What ``--encoder`` takes."""
    from offmap.core import registry
    from offmap.core.trainer import Trainer
    from offmap.represent.trained import PREFIX, STAGE

    ready = [{"name": spec, "what": _first(registry.module("represent", file))} for spec, file in ENCODERS.items()]
    return ready + [{"name": PREFIX + name, "what": _first(cls)} for name, cls in registry.load_all(STAGE, Trainer).items()]


def recipes() -> list[Row]:
    """Shipped recipes with their detectors."""
    from offmap.pipeline import recipe

    found = {name: recipe.read(name) for name in recipe.shipped()}
    return [{"name": name, "encoder": r.encoder.spec, "detectors": [d.method() for d in r.parts.values()]} for name, r in found.items()]


def steps() -> list[Row]:
    """Steps of preparation."""
    from offmap.core import registry
    from offmap.prepare.preparation import Step

    return [{"name": name, "what": _first(cls)} for name, cls in registry.load_all("prepare", Step).items()]


def _first(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").partition("\n\n")[0].replace("\n", " ")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    return ", ".join(value) if isinstance(value, list) else str(value)
