"""Several classifiers of the same classes, trained apart, as one encoder."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.encoder import Encoder
from offmap.core.errors import ConfigError
from offmap.core.types import Signals
from offmap.represent.class_names import same_order
from offmap.represent.classifier import ClassifierEncoder

SIGNAL = "ensemble.logits"

MOST = 100
"""Members at most."""


class EnsembleEncoder(Encoder):
    """Everything that the first member gives, and ``ensemble.logits (N, S, K)`` of all S members.

    Each member normalises the prepared image in its own way; all take it at one size. The others run only where ``ensemble.logits`` is
    asked for, one pass each.

    Args:
        members: two or more networks with a head; classes in the same order, by their names where the networks have them
            (``ClassifierEncoder.class_names``); numbers cannot tell, so that detectors look at the answers while fitting.

    Raises:
        ConfigError: fewer than two members or too many, one without a head, two with other numbers, names or orders of classes or other
            input sizes, or the same network twice.
    """

    def __init__(self, members: Sequence[ClassifierEncoder]) -> None:
        _check(members)
        first = members[0]
        self.members = tuple(members)
        self.name = f"ensemble of {len(members)}: {', '.join(dict.fromkeys(member.name for member in members))}"
        self.layers, self.input = first.layers, first.input
        self.class_names = next((member.class_names for member in members if member.class_names), ())
        self.provides = first.provides | {SIGNAL}
        self.sha256 = hashlib.sha256("\n".join(member.sha256 for member in members).encode()).hexdigest()

    @property
    def classes(self) -> int:
        """Number of logits of each member."""
        return self.members[0].classes

    def encode(self, images: Float[Tensor, "n c h w"], needs: frozenset[str]) -> Signals:
        """As ``Encoder.encode``."""
        own = needs - {SIGNAL}
        if len(own) == len(needs):
            return self.members[0].encode(images, needs)
        signals = self.members[0].encode(images, own | {"logits"})
        others = [member.encode(images, frozenset({"logits"}))["logits"] for member in self.members[1:]]
        return {**signals, SIGNAL: torch.stack([signals["logits"], *others], dim=1)}

    def ready(self, needs: frozenset[str]) -> None:
        """As ``Encoder.ready``."""
        self.members[0].ready(needs - {SIGNAL})

    def to(self, device: torch.device | str) -> "EnsembleEncoder":
        """The same encoder on another device; the user's modules stay where they are."""
        return EnsembleEncoder([member.to(device) for member in self.members])

    def state(self) -> None:
        """None: the modules are given again when a gate is loaded."""
        return

    def config(self) -> dict[str, Any]:
        """What each member records, with its digest."""
        return {"kind": "ensemble", "name": self.name, "sha256": self.sha256, "members": [member.config() for member in self.members]}


def _check(members: Sequence[ClassifierEncoder]) -> None:
    if not 2 <= len(members) <= MOST:
        raise ConfigError(f"an ensemble of {len(members)}: between 2 and {MOST} classifiers are needed, one alone is given as it is")
    for i, member in enumerate(members, 1):
        if member.classes == 0:
            raise ConfigError(f"member {i} of the ensemble ({member.name}) has no head that gives logits")
        if member.classes != members[0].classes:
            raise ConfigError(
                f"member {i} of the ensemble ({member.name}) has {member.classes} classes, the first has {members[0].classes}: "
                "all must answer the same question, with the classes in the same order"
            )
        named = next((one for one in members if one.class_names), member)
        same_order(named.class_names, member.class_names, f"member {i} of the ensemble ({member.name})")
        if member.input.size != members[0].input.size:
            raise ConfigError(
                f"member {i} of the ensemble ({member.name}) takes {member.input.size} pixels, the first {members[0].input.size}: "
                "all see one prepared image; export programs with notes of the same size"
            )
        twin = next((j for j, other in enumerate(members[: i - 1], 1) if other.sha256 == member.sha256), 0)
        if twin:
            raise ConfigError(f"members {twin} and {i} of the ensemble are the same network: give networks that were trained apart")
