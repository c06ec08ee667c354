"""What every stage's parts have in common: a file name as name, JSON values as parameters."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

from offmap.core.errors import ConfigError

C = TypeVar("C", bound="Component")


class Component:
    """Base of frozen dataclasses whose fields are JSON values.

    Ranges are checked in ``__post_init__`` of the subclass (nothing can be set afterwards).
    """

    reference: ClassVar[str] = ""
    """Author et al., venue year, arXiv or DOI, equation."""

    @classmethod
    def method(cls) -> str:
        """Name under which recipes and manifests know it: the name of its file."""
        return cls.__module__.rpartition(".")[2]

    def params(self) -> dict[str, Any]:
        """Hyper-parameters as JSON values."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}  # type: ignore[arg-type]

    @classmethod
    def from_params(cls: type[C], params: Mapping[str, Any], *, where: str = "") -> C:
        """Build from JSON values.

        Args:
            params: field names to values; lists become tuples, integers become floats where the field is a float.
            where: table of the recipe or manifest, for the message.

        Raises:
            ConfigError: unknown key (with the nearest name), wrong type, or out of range.
        """
        where = where or cls.method()
        hints = get_type_hints(cls)
        known = [f.name for f in dataclasses.fields(cls) if f.init]  # type: ignore[arg-type]
        values = {}
        for key, value in params.items():
            if key not in known:
                raise ConfigError(f"[{where}] has no parameter {key!r}{nearest(key, known)}. It has: {', '.join(known) or 'none'}")
            values[key] = _coerce(value, hints[key], f"[{where}] {key}")
        return cls(**values)


def nearest(word: str, known: list[str]) -> str:
    """``; did you mean 'knn'?`` or nothing."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _coerce(value: Any, hint: Any, where: str) -> Any:
    if get_origin(hint) is tuple or hint is tuple:
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise ConfigError(f"{where} = {value!r} must be a list")
        inner = get_args(hint)
        return tuple(_coerce(v, inner[0] if inner else Any, where) for v in value)
    options = get_args(hint) if get_origin(hint) is not None or "|" in str(hint) else (hint,)
    listed = next((o for o in options if get_origin(o) is tuple), None)
    if listed is not None and isinstance(value, (list, tuple)):
        return _coerce(value, listed, where)
    if get_origin(hint) is not None and str(get_origin(hint)) == "typing.Literal":
        if value not in options:
            raise ConfigError(f"{where} = {value!r} must be one of {', '.join(map(repr, options))}")
        return value
    if bool in options and isinstance(value, bool):
        return value
    if int in options and isinstance(value, int) and not isinstance(value, bool):
        return value
    if float in options and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if (str in options and isinstance(value, str)) or (type(None) in options and value is None) or Any in options:
        return value
    raise ConfigError(f"{where} = {value!r} has the wrong type: {getattr(hint, '__name__', hint)} expected")


def from_text(cls: type[Component], key: str, text: str) -> Any:
    """Parse the value of ``--set table.key=text`` by the field's type (JSON first, else the text itself)."""
    import json

    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    hints = get_type_hints(cls)
    if isinstance(value, (int, float, bool)) and hints.get(key) is str:
        return text
    return value
