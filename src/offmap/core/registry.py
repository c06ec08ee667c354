"""Finds the parts of a stage by file name, without a list and without importing them.

``offmap/score/knn.py`` is the method ``knn`` of the stage ``score``. Packages outside offmap add theirs with an
entry point in the group ``offmap.<stage>``: ``my_method = "my_package.my_method"`` (a module, whose last name is the method).
"""

import importlib
import inspect
import pkgutil
from functools import cache
from importlib import metadata
from types import ModuleType
from typing import TypeVar

from offmap.core.component import Component, nearest
from offmap.core.errors import ConfigError

C = TypeVar("C", bound=Component)


@cache
def _modules(stage: str) -> dict[str, str]:
    package = importlib.import_module(f"offmap.{stage}")
    own = {m.name: f"offmap.{stage}.{m.name}" for m in pkgutil.iter_modules(package.__path__) if not m.ispkg and not m.name.startswith("_")}
    foreign = {e.name: e.value for e in metadata.entry_points(group=f"offmap.{stage}")}
    return foreign | own


def names(stage: str) -> tuple[str, ...]:
    """Names of a stage's files, sorted."""
    return tuple(sorted(_modules(stage)))


def module(stage: str, name: str) -> ModuleType:
    """The module of a name in the list; a name outside the list imports nothing.

    Raises:
        ConfigError: no such name, with the nearest one.
    """
    known = _modules(stage)
    if name not in known:
        raise ConfigError(f"{stage} has no method {name!r}{nearest(name, list(known))}. `offmap methods` lists all")
    return importlib.import_module(known[name])


def _defined(mod: ModuleType, base: type[C]) -> list[type[C]]:
    """Public, concrete subclasses of ``base`` that the module itself defines."""
    return [
        c
        for name, c in vars(mod).items()
        if inspect.isclass(c)
        and issubclass(c, base)
        and c.__module__ == mod.__name__
        and not (name.startswith("_") or inspect.isabstract(c))
    ]


def load(stage: str, name: str, base: type[C]) -> type[C]:
    """The one public subclass of ``base`` that the file of this name defines.

    Raises:
        ConfigError: no such name, or its file defines none or several.
    """
    mod = module(stage, name)
    classes = _defined(mod, base)
    if len(classes) != 1:
        raise ConfigError(f"{mod.__name__} must define one public {base.__name__}, found {len(classes)}")
    return classes[0]


def load_all(stage: str, base: type[C]) -> dict[str, type[C]]:
    """Every file of the stage that defines a ``base``, by name."""
    return {name: load(stage, name, base) for name in names(stage) if _defined(module(stage, name), base)}
