"""Names of signals that have settings: ``odin.logits:epsilon=0.0014,temperature=1000``.

What a signal is made with stands in its name, so that detectors with equal settings share one pass, and caches tell others apart.
"""

import json
from collections.abc import Mapping

from offmap.core.component import nearest
from offmap.core.errors import ConfigError

Scalar = bool | int | float

DEAR = frozenset({"klip.map", "klip.relative.map"})
"""Maps that cost hundreds of passes an image and have few numbers: caches keep them as they keep vectors."""


def named(base: str, settings: Mapping[str, Scalar]) -> str:
    """The name of a signal with its settings, sorted by key; equal settings give equal names (1000 and 1000.0 are equal)."""
    return f"{base}:{','.join(f'{key}={_text(settings[key])}' for key in sorted(settings))}" if settings else base


def base_of(name: str) -> str:
    """The name without settings."""
    return name.partition(":")[0]


def is_map(name: str) -> bool:
    """Whether a signal is a map, which is large: kept for few images, and not in caches."""
    return name.startswith("feature_map") or base_of(name).endswith(".map")


def is_kept(name: str) -> bool:
    """Whether caches keep a signal: vectors, and the maps of ``DEAR``."""
    return name != "image" and (not is_map(name) or base_of(name) in DEAR)


def settings_of(name: str, defaults: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The settings in a name, over the defaults; a setting has the type of its default.

    Raises:
        ConfigError: unknown key (with the nearest one), or a value of another type.
    """
    out = dict(defaults)
    for part in filter(None, name.partition(":")[2].split(",")):
        key, _, text = part.partition("=")
        if key not in defaults:
            raise ConfigError(
                f"signal {name!r} has no setting {key!r}{nearest(key, list(defaults))}. It has: {', '.join(defaults) or 'none'}"
            )
        out[key] = _value(name, key, text, defaults[key])
    return out


def _text(value: Scalar) -> str:
    return json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value)


def _value(name: str, key: str, text: str, default: Scalar) -> Scalar:
    kind = type(default)
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, (int, float)) or (kind is int and not isinstance(value, int)):
        raise ConfigError(f"signal {name!r}: {key} = {text} must be of type {kind.__name__}, such as {_text(default)}")
    return kind(value)
