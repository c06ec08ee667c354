"""A frozen encoder with a small network on its feature maps, which adds one map to the encoder's own signals."""

import copy
from fnmatch import fnmatchcase
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.encoder import Encoder
from offmap.core.errors import ConfigError, SignalError
from offmap.core.types import Signals
from offmap.represent.digest import tensors_sha256
from offmap.represent.filled import require_finite
from offmap.represent.layers import wanted
from offmap.represent.nets.feature_net import FeatureNet, Shapes

CHUNK = 16
"""Images at a time."""


class WithFeatureNet(Encoder):
    """Gives all signals of its base, and ``<method>.map (N, 1, h, w)``: how odd each position is to the network.

    One pass of the base serves both. The grid of the map is the finest of the layers that are read (at most 40 a side). Computed in
    float32.

    Args:
        base: frozen; gives ``feature_map.<layer> (N, C, h, w)``.
        layers: whose maps the network reads, from shallow to deep.
        net: trained.
        signal: name of the map.

    Raises:
        BundleError: weights that are not finite.
    """

    def __init__(self, base: Encoder, layers: tuple[str, ...], net: FeatureNet, signal: str, *, device: torch.device | str = "cpu") -> None:
        self.base, self._read, self._signal = base, layers, signal
        self._net = net.to(device).eval().requires_grad_(False)
        self.name, self.layers, self.input, self.class_names = base.name, base.layers, base.input, base.class_names
        self.provides = base.provides | {signal}
        weights = self._net.state_dict()
        require_finite(weights, signal)
        self.sha256 = tensors_sha256(dict(weights), note=f"{base.sha256} {' '.join(layers)}")
        self._maps = tuple(f"feature_map.{layer}" for layer in layers)

    @property
    def net(self) -> FeatureNet:
        """On the maps of the layers that it reads."""
        return self._net

    @property
    def classes(self) -> int:
        """Number of the base's logits."""
        return self.base.classes

    def ready(self, needs: frozenset[str]) -> None:
        """As ``Encoder.ready``."""
        self.base.ready(needs - {self._signal})

    def encode(self, images: Float[Tensor, "n c h w"], needs: frozenset[str]) -> Signals:
        """As ``Encoder.encode``.

        Raises:
            SignalError: the base's maps are not of the width that the network was trained on.
        """
        others = needs - {self._signal}
        if not any(need == self._signal or ("*" in need and fnmatchcase(self._signal, need)) for need in needs):
            return self.base.encode(images, others)
        signals = dict(self.base.encode(images, others | frozenset(self._maps)))
        maps = [signals[name] for name in self._maps]
        keep = wanted(others, self.base.provides, self.base.layers)
        out = {name: value for name, value in signals.items() if name not in self._maps or name in keep}
        try:
            with torch.no_grad():
                parts = [self._net.oddness(part) for part in zip(*(m.split(CHUNK) for m in maps), strict=True)]
        except RuntimeError as error:
            shapes = ", ".join(f"{name} {tuple(m.shape[1:])}" for name, m in zip(self._maps, maps, strict=True))
            raise SignalError(f"{self._signal} cannot be made of {shapes}: {str(error).splitlines()[0][:200]}") from error
        out[self._signal] = torch.cat(parts)[:, None]
        return out

    def to(self, device: torch.device | str) -> "WithFeatureNet":
        """The same encoder on another device."""
        return WithFeatureNet(self.base.to(device), self._read, copy.deepcopy(self._net), self._signal, device=device)

    def state(self) -> dict[str, Tensor] | None:
        """None: a gate keeps it as the network of a trainer, and not by itself."""
        return None

    def config(self) -> dict[str, Any]:
        """What it reads, and the base encoder."""
        return {
            "kind": "feature_net",
            "name": self.name,
            "sha256": self.sha256,
            "signal": self._signal,
            "reads": list(self._read),
            "base": self.base.config(),
        }


def read_layers_of(base: Encoder, named: tuple[str, ...], count: int) -> tuple[str, ...]:
    """The named layers; where none is named, the ``count`` before the deepest, or the deepest ones where there are no more.

    Raises:
        ConfigError: the base has no map of a named layer, or none at all.
    """
    known = tuple(layer for layer in base.layers if f"feature_map.{layer}" in base.provides)
    lacking = [layer for layer in named if layer not in known]
    if lacking or not known:
        raise ConfigError(f"{base.name} has no map of {', '.join(lacking) or 'any layer'}; it has maps of {', '.join(known) or 'none'}")
    if named:
        return tuple(layer for layer in known if layer in named)
    return known[-count - 1 : -1] if len(known) > count else known


def shapes_of(base: Encoder, layers: tuple[str, ...], device: torch.device) -> Shapes:
    """Channels, height and width of each layer's map at the base's own input size.

    Raises:
        ConfigError: a layer gives no map of two axes.
    """
    grey = torch.full((1, base.input.channels, base.input.size, base.input.size), 0.5, device=device)
    signals = base.encode(grey, frozenset(f"feature_map.{layer}" for layer in layers))
    shapes = [tuple(signals[f"feature_map.{layer}"].shape[1:]) for layer in layers]
    if any(len(shape) != 3 for shape in shapes):
        raise ConfigError(f"the maps of {', '.join(layers)} have shapes {shapes}; (C, h, w) expected")
    return tuple((int(c), int(h), int(w)) for c, h, w in shapes)
