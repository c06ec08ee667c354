"""Two networks as one encoder: a cheap one, and one that gives further signals of the same image."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from offmap.core.encoder import Encoder
from offmap.core.errors import ConfigError
from offmap.core.signals import base_of
from offmap.core.types import Signals

FIRST, SECOND = "first.", "second."
"""Prefixes of their weights in a gate."""

SHARED = frozenset({"image"})
"""Signals that both may give: the prepared image itself."""


class Pair(Encoder):
    """Everything that either network gives; each runs only where a signal of its own is asked for.

    Images are prepared at the larger of the two sizes, and brought to the other network's own.

    Args:
        first, second: networks whose signals have different names.

    Raises:
        ConfigError: a signal that both give.
    """

    def __init__(self, first: Encoder, second: Encoder) -> None:
        twice = sorted(first.provides & second.provides - SHARED)
        if twice:
            raise ConfigError(
                f"{first.name} and {second.name} both give {', '.join(twice[:3])}: the two networks must give different signals"
            )
        self.first, self.second = first, second
        self.name = f"{first.name} + {second.name}"
        self.layers, self.provides, self.class_names = first.layers, first.provides | second.provides, first.class_names
        self.input = replace(first.input, size=max(first.input.size, second.input.size))
        self.sha256 = hashlib.sha256(f"{first.sha256}\n{second.sha256}".encode()).hexdigest()

    @property
    def classes(self) -> int:
        """Number of logits of the first network."""
        return self.first.classes

    def own(self, encoder: Encoder, needs: frozenset[str]) -> frozenset[str]:
        """Those of ``needs`` that one of the two answers; the image comes from neither."""
        gives = encoder.provides - SHARED
        return frozenset(need for need in needs if need in gives or base_of(need) in gives or any(fnmatchcase(g, need) for g in gives))

    def encode(self, images: Float[Tensor, "n c h w"], needs: frozenset[str]) -> Signals:
        """As ``Encoder.encode``."""
        signals: dict[str, Tensor] = {"image": images} if "image" in needs else {}
        for encoder in (self.first, self.second):
            if asked := self.own(encoder, needs):
                signals |= encoder.encode(resized(images, encoder.input.size), asked)
        return signals

    def ready(self, needs: frozenset[str]) -> None:
        """As ``Encoder.ready``."""
        for encoder in (self.first, self.second):
            if asked := self.own(encoder, needs):
                encoder.ready(asked)

    def to(self, device: torch.device | str) -> "Pair":
        """The same encoder on another device."""
        return Pair(self.first.to(device), self.second.to(device))

    def state(self) -> dict[str, Tensor] | None:
        """Weights of both; None where those of the second are not to be had."""
        second = self.second.state()
        if second is None:
            return None
        return joined_state(self.first.state() or {}, second)

    def config(self) -> dict[str, Any]:
        """Both configurations."""
        both = {"first": self.first.config(), "second": self.second.config()}
        return {"kind": "pair", "name": self.name, "sha256": self.sha256, **both}


def joined_state(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of two networks under their prefixes."""
    return {FIRST + name: value for name, value in first.items()} | {SECOND + name: value for name, value in second.items()}


def parted_state(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The inverse of ``joined_state``."""
    first, second = ({k.removeprefix(p): v for k, v in state.items() if k.startswith(p)} for p in (FIRST, SECOND))
    return first, second


def resized(images: Float[Tensor, "n c h w"], size: int) -> Float[Tensor, "n c r s"]:
    """Square images at another size, antialiased; as they are where they have it."""
    if images.shape[-1] == size and images.shape[-2] == size:
        return images
    return functional.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
