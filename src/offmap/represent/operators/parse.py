"""Operators by their text on the command line: ``ct:views=24,noise=0.01``."""

import json

from offmap.core import registry
from offmap.core.component import nearest
from offmap.core.errors import ConfigError
from offmap.represent.operators.contract import Operator

STAGE = "represent.operators"


def operators() -> dict[str, type[Operator]]:
    """All operators by the names of their files."""
    return registry.load_all(STAGE, Operator)


def parse(text: str) -> Operator:
    """The operator that a text describes.

    Args:
        text: ``name`` or ``name:key=value,key=value``.

    Raises:
        ConfigError: unknown name or key (with the nearest one), a value of the wrong type or out of range, or a key given twice.
    """
    name, _, rest = text.partition(":")
    known = operators()
    if name not in known:
        raise ConfigError(f"there is no operator {name!r}{nearest(name, list(known))}. There are: {', '.join(known)}")
    values: dict[str, object] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals or key in values:
            raise ConfigError(f"operator {text!r}: {part!r} must be key=value, each key once, such as ct:views=24,noise=0.01")
        values[key] = _value(value)
    return known[name].from_params(values, where=f"operator {name}")


def says(text: str, operator: Operator) -> bool:
    """Whether a text describes this operator, in its name and in all keys that it names.

    Raises:
        ConfigError: as ``parse``.
    """
    name, _, rest = text.partition(":")
    given, have = parse(text), operator.params()
    named = [part.partition("=")[0] for part in filter(None, rest.split(","))]
    return name == operator.method() and all(getattr(given, key) == have[key] for key in named)


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
