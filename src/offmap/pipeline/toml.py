"""A recipe as TOML, to be read again by ``recipe.read``."""

import json
from collections.abc import Mapping
from typing import Any

from offmap.pipeline.recipe import Recipe


def to_toml(recipe: Recipe, *, comment: str = "") -> str:
    """The whole recipe, every parameter written out.

    Args:
        comment: lines put above it.
    """
    tables = recipe.to_json()
    lines = [f"# {line}" for line in comment.splitlines()]
    lines += _table("encoder", tables["encoder"])
    lines += _table("train", tables["train"]) if "train" in tables else []
    if "klip" in tables:
        lines += _table("klip", {k: v for k, v in tables["klip"].items() if k != "sampler"})
        lines += _table("klip.sampler", tables["klip"]["sampler"])
    second = tables.get("second", {})
    lines += _table("second", {k: v for k, v in second.items() if k != "train"}) if second else []
    lines += _table("second.train", second["train"]) if "train" in second else []
    seen: set[str] = set()
    for i, step in enumerate(tables["prepare"], 1):
        name = step["method"] if step["method"] not in seen else f"step_{i}"
        seen.add(name)
        lines += _table(f"prepare.{name}", {k: v for k, v in step.items() if k != "method" or name != v})
    lines += _table("forms", tables["forms"])
    for name, table in tables["score"].items():
        lines += _table(f"score.{name}", table)
    for stage in ("cascade", "calibrate", "decide", "evidence"):
        lines += _table(stage, tables[stage]) if stage in tables else []
    return "\n".join(lines).lstrip("\n") + "\n"


def _table(name: str, values: Mapping[str, Any]) -> list[str]:
    """Lines of one table; what is None is left out, as TOML has no word for it."""
    return ["", f"[{name}]", *(f"{key} = {_value(value)}" for key, value in values.items() if value is not None)]


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return "[" + ", ".join(_value(v) for v in value) + "]"
