"""An encoder that computes the dear signals of a cascade only for the images that need them."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from offmap.core.encoder import Encoder
from offmap.core.types import STATIC, Signals

RAN = "cascade.ran"
"""Signal ``(N,)``: 1 for images of which the dear signals were computed, else 0."""

Undecided = Callable[[Signals], Bool[Tensor, " n"]]


class Deferred(Encoder):
    """Any encoder; ``dear`` signals are NaN, and take no time, where the cheap ones settle the matter.

    Args:
        base: the encoder.
        dear: names of the signals to be put off; those that are needed for other reasons must not be among them.
        undecided: from the cheap signals of a batch, which images need the others.
        rule: digest of what ``undecided`` goes by, so that features kept under one rule are not taken for those of another.
    """

    def __init__(self, base: Encoder, dear: frozenset[str], undecided: Undecided, rule: str) -> None:
        self.base, self.dear, self._undecided, self._rule = base, dear, undecided, rule
        self.name, self.layers, self.input, self.class_names = base.name, base.layers, base.input, base.class_names
        self.provides = base.provides | {RAN}
        self.sha256 = hashlib.sha256(f"{base.sha256}\n{rule}\n{sorted(dear)}".encode()).hexdigest()
        self._shapes: Mapping[str, tuple[int, ...]] = {}

    @property
    def classes(self) -> int:
        """As the base encoder."""
        return self.base.classes

    def encode(self, images: Float[Tensor, "n c *s"], needs: frozenset[str]) -> Signals:
        """As ``Encoder.encode``, with ``cascade.ran``."""
        put_off = needs & self.dear
        signals = dict(self.base.encode(images, needs - put_off - {RAN}))
        if not put_off:
            return signals
        passed = self._undecided(signals).to(images.device)
        rows = torch.nonzero(passed).flatten()
        if len(rows) or not self._shapes:
            some = images[rows] if len(rows) else images[:1]
            known = {*signals, *STATIC}
            found = {name: value for name, value in self.base.encode(some, put_off).items() if name not in known}
            self._shapes = {name: tuple(value.shape[1:]) for name, value in found.items()}
        for name, shape in self._shapes.items():
            signals[name] = images.new_full((len(images), *shape), torch.nan)
            if len(rows):
                signals[name][rows] = found[name]
        return {**signals, RAN: passed.to(images.dtype)}

    def ready(self, needs: frozenset[str]) -> None:
        """As ``Encoder.ready``."""
        self.base.ready(needs - {RAN})

    def to(self, device: torch.device | str) -> "Deferred":
        """The same encoder on another device."""
        return Deferred(self.base.to(device), self.dear, self._undecided, self._rule)

    def state(self) -> dict[str, Tensor] | None:
        """Weights of the base encoder."""
        return self.base.state()

    def config(self) -> dict[str, Any]:
        """The rule's digest and the base encoder."""
        return {"kind": "deferred", "rule": self._rule, "dear": sorted(self.dear), "base": self.base.config()}
