"""Every trainer found, without a list, with settings so small that a training takes no time."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from offmap.core import registry
from offmap.core.trainer import Trainer
from offmap.represent.trained import STAGE

TRAINERS = registry.load_all(STAGE, Trainer)

TINY: Mapping[str, Any] = {
    "size": 32,
    "channels": 1,
    "steps": 4,
    "epochs": 3,
    "check_every": 2,
    "batch": 4,
    "warmup": 2,
    "widths": (8, 8),
    "width": 8,
    "hidden": 8,
    "blocks": 1,
    "couplings": 1,
    "latent": 4,
    "entries": 8,
    "encoding": 0.5,
    "code_widths": (8, 8),
    "code_steps": 4,
    "student_widths": (8, 8),
    "student_steps": 4,
    "variants": 1,
    "background": True,
    "members": 2,
    "gradients": True,
}
"""Values of fields, where a trainer has one of that name."""


def tiny(name: str, **changes: Any) -> Trainer:
    """A trainer with ``TINY`` and other changes, of the fields that it has."""
    kind = TRAINERS[name]
    given = {**TINY, **changes}
    own = {f.name: given[f.name] for f in fields(kind) if f.name in given}
    return kind.from_params({key: value for key, value in own.items() if isinstance(getattr(kind, key), bool) == isinstance(value, bool)})
