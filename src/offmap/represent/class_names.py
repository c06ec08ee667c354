"""What a classifier's outputs stand for, where it says so."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from offmap.core.errors import ConfigError

ATTRIBUTES = ("classes", "class_names")
"""Of a module: a list of words in the order of the logits."""

_NUMBERED = re.compile(r"LABEL_\d+")
"""What transformers write where nobody named the classes."""


def names_of(module: nn.Module) -> tuple[str, ...]:
    """Names in the order of the logits: the module's ``classes`` or ``class_names``, or ``id2label`` of its ``config``; empty without."""
    for attribute in ATTRIBUTES:
        found = getattr(module, attribute, None)
        if isinstance(found, list | tuple) and found and all(isinstance(name, str) for name in found):
            return tuple(found)
    return _labelled(getattr(getattr(module, "config", None), "id2label", None))


def _labelled(table: Any) -> tuple[str, ...]:
    if not isinstance(table, Mapping) or not all(str(key).isdigit() for key in table):
        return ()
    names = tuple(str(table[key]) for key in sorted(table, key=int))
    return () if all(_NUMBERED.fullmatch(name) for name in names) else names


def checked(names: Sequence[str], count: int, who: str) -> tuple[str, ...]:
    """The names, where they are as many as the logits and all different.

    Raises:
        ConfigError: they are not.
    """
    if names and (len(names) != count or len(set(names)) != len(names) or not all(str(name).strip() for name in names)):
        raise ConfigError(
            f"{who} names {len(names)} classes ({', '.join(map(str, names))[:200]}) and gives {count} logits: "
            "one name for each, all different"
        )
    return tuple(map(str, names))


def same_order(first: Sequence[str], other: Sequence[str], who: str) -> None:
    """Raises:
    ConfigError: both are known, and are other classes or in another order.
    """
    if not first or not other or tuple(first) == tuple(other):
        return
    if set(first) == set(other):
        raise ConfigError(
            f"{who} has its classes in another order, {', '.join(other)}, than the first member, {', '.join(first)}: "
            "put the rows of its last layer into that order"
        )
    raise ConfigError(f"{who} answers {', '.join(other)}, the first member {', '.join(first)}: all must answer the same question")
