"""Volumes through an encoder of images: slice by slice, pooled over the slices."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.encoder import Encoder
from offmap.core.errors import ConfigError, SignalError
from offmap.core.types import STATIC, Signals

CHUNK = 32
"""Slices a pass: bounds the memory of a long series."""

POOLS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda values: values.mean(dim=1),
    "max": lambda values: values.amax(dim=1),
    "std": lambda values: values.std(dim=1, correction=min(1, values.shape[1] - 1)),
}
"""Reductions over the slices, ``(N, D, F) -> (N, F)``; the deviation is unbiased, and 0 for a single slice."""


class SliceWise(Encoder):
    """Each axial slice is an image of the base encoder.

    ``features.<layer>`` is the slices' vectors pooled over D, one reduction after the other ((mean, max) doubles the width):
    the mean says what the series is, the maximum keeps one strange slice from being averaged away.
    ``feature_map.<layer>`` is ``(N, C, D, h, w)``. Logits and heads are not given: a slice has them, a volume does not.

    Args:
        base: encoder of slices.
        pool: ``mean``, ``max``, ``std``, in the order wanted.

    Raises:
        ConfigError: no or unknown reductions.
    """

    def __init__(self, base: Encoder, pool: tuple[str, ...] = ("mean", "max")) -> None:
        if not pool or not set(pool) <= set(POOLS):
            raise ConfigError(f"pool = {pool!r} must be one or several of {', '.join(POOLS)}")
        self.base = base
        self.pool = tuple(pool)
        self.name = base.name
        self.layers = base.layers
        self.provides = frozenset(p for p in base.provides if p.startswith(("features.", "feature_map."))) | {"image"}
        self.input = base.input
        self.sha256 = base.sha256

    def encode(self, images: Float[Tensor, "n c d h w"], needs: frozenset[str]) -> Signals:
        """As ``Encoder.encode``, for volumes.

        Raises:
            SignalError: the volumes have no slice, or as the base encoder.
        """
        n, channels, depth = images.shape[:3]
        if depth == 0:
            raise SignalError(f"volumes of shape {tuple(images.shape)} have no slice")
        flat = images.transpose(1, 2).reshape(n * depth, channels, *images.shape[3:])
        asked = needs - {"image", "logits", *STATIC}
        parts: dict[str, list[Tensor]] = {}
        for chunk in flat.split(CHUNK):
            for name, value in self.base.encode(chunk, asked).items():
                parts.setdefault(name, []).append(value)
        signals = {name: self._volume(name, torch.cat(values), n, depth) for name, values in parts.items() if name in self.provides}
        return signals | ({"image": images} if "image" in needs else {})

    def _volume(self, name: str, values: Tensor, n: int, depth: int) -> Tensor:
        stacked = values.reshape(n, depth, *values.shape[1:])
        if name.startswith("feature_map."):
            return stacked.transpose(1, 2)
        return torch.cat([POOLS[p](stacked) for p in self.pool], dim=1)

    def to(self, device: torch.device | str) -> "SliceWise":
        """The same encoder on another device."""
        return SliceWise(self.base.to(device), self.pool)

    def state(self) -> dict[str, Tensor] | None:
        """Weights of the base encoder."""
        return self.base.state()

    def config(self) -> dict[str, Any]:
        """Reductions and the base encoder."""
        return {"kind": "slices", "name": self.name, "sha256": self.sha256, "pool": list(self.pool), "base": self.base.config()}
