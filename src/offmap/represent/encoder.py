"""The built-in encoder: a small residual network for medical images, shipped inside the package; needs no download."""

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offmap.core.encoder import Encoder, Input
from offmap.core.errors import ConfigError, NotAvailableError, SignalError
from offmap.core.types import Signals
from offmap.represent.digest import tensors_sha256
from offmap.represent.filled import filled, require_finite
from offmap.represent.layers import chosen, joined, map_names, map_signals, normalise, read_layers, wanted
from offmap.represent.nets.small import Deepest, SmallNet

SMALLEST = 32
"""Smallest side of an image in pixels: one position in the deepest stage."""

CHUNK = 16
"""Images a pass on a CPU: its maps still fit the cache, which is a twentieth faster than 64."""


class BuiltinEncoder(Encoder):
    """Five layers, ``stem`` and ``stages.0`` to ``stages.3``.

    ``features.<layer>`` is the spatial mean and unbiased standard deviation of ``feature_map.<layer>``. Fully convolutional:
    any height and width from 32 pixels on. Weights are stored as float16 and computed in float32.

    Args:
        weights: tensors of ``SmallNet`` by name.
        net: the ``config.json`` beside the weights.
        name: ``builtin`` or ``builtin:DIR``.
        layers: those to give; all when empty.
        size: side of the input in pixels; the one it was trained at when None.

    Raises:
        ConfigError: unknown layer, wrong configuration, or a size under 32.
        BundleError: weights do not fit the configuration or are not finite.
    """

    reentrant: ClassVar[bool] = True

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        net: Mapping[str, Any],
        *,
        name: str = "builtin",
        layers: Sequence[str] = (),
        size: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self._stored = {name: value.detach() for name, value in weights.items()}
        self._config = dict(net)
        self._net = _filled(SmallNet.from_config(net), weights).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._device = torch.device(device)
        self.name = name
        self.layers = chosen(layers, self._net.taps, "the built-in encoder")
        self.provides = map_names(self.layers) | {"image"}
        self.input = _input(net, size)
        self.sha256 = tensors_sha256(self._stored)

    @classmethod
    def shipped(cls, *, layers: Sequence[str] = (), size: int | None = None, device: torch.device | str = "cpu") -> "BuiltinEncoder":
        """The one inside the package."""
        from safetensors.torch import load

        folder = resources.files("offmap.represent") / "weights"
        net = json.loads((folder / "offmap_encoder.json").read_text())
        return cls(load((folder / "offmap_encoder.safetensors").read_bytes()), net, layers=layers, size=size, device=device)

    @classmethod
    def from_folder(
        cls, folder: Path, *, layers: Sequence[str] = (), size: int | None = None, device: torch.device | str = "cpu"
    ) -> "BuiltinEncoder":
        """One of the same family from the ``model.safetensors`` and ``config.json`` that `offmap train-encoder` writes.

        Raises:
            NotAvailableError: one of the two files is missing.
            ConfigError: they cannot be read.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            net = json.loads((folder / "config.json").read_text())
            weights = load_file(folder / "model.safetensors")
        except FileNotFoundError as error:
            raise NotAvailableError(f"{folder} must hold config.json and model.safetensors of `offmap train-encoder`") from error
        except (SafetensorError, ValueError) as error:
            raise ConfigError(f"{folder} holds no readable encoder: {error}") from error
        return cls(weights, net, name=f"builtin:{folder}", layers=layers, size=size, device=device)

    @classmethod
    def from_bundle(cls, config: Mapping[str, Any], state: Mapping[str, Tensor], *, device: torch.device | str = "cpu") -> "BuiltinEncoder":
        """Build from what ``config`` and ``state`` gave."""
        return cls(state, config["net"], name=config["name"], layers=config["layers"], size=config["size"], device=device)

    def encode(self, images: Float[Tensor, "n c h w"], needs: frozenset[str]) -> Signals:
        """As ``Encoder.encode``; one image gives the same values as in its batch, to about 1e-6.

        Raises:
            SignalError: an image smaller than 32 pixels, or neither 1 nor 3 channels.
        """
        if min(images.shape[2:]) < SMALLEST:
            raise SignalError(
                f"images of shape {tuple(images.shape)} are smaller than the {SMALLEST} pixels that the built-in encoder can see"
            )
        want = wanted(needs, self.provides, self.layers)
        read = read_layers(want, self.layers)
        signals = {"image": images} if "image" in want else {}
        if not read:
            return signals
        step = CHUNK if images.device.type == "cpu" else max(1, len(images))
        with torch.no_grad():
            parts = [self._pass(part, want, read) for part in images.split(step)]
            return signals | joined(parts)

    def _pass(self, images: Tensor, want: frozenset[str], read: tuple[str, ...]) -> dict[str, Tensor]:
        pixels = normalise(images, self.input)
        if pixels.shape[1] < self.input.channels:
            pixels = pixels.expand(-1, self.input.channels, -1, -1)
        maps = self._net(pixels.contiguous(memory_format=torch.channels_last), read[-1])
        return map_signals({name: maps[name] for name in read}, want, self.layers[-1])

    def backbone(self) -> nn.Module:
        """The network from normalised pixels to the deepest map ``(N, C, h, w)``; it is the encoder's own."""
        return Deepest(self._net)

    def to(self, device: torch.device | str) -> "BuiltinEncoder":
        """The same encoder on another device."""
        return BuiltinEncoder(self._stored, self._config, name=self.name, layers=self.layers, size=self.input.size, device=device)

    def state(self) -> dict[str, Tensor]:
        """Weights as stored (float16, 4 MB)."""
        return dict(self._stored)

    def config(self) -> dict[str, Any]:
        """Layers, input size and architecture."""
        return {
            "kind": "builtin",
            "name": self.name,
            "sha256": self.sha256,
            "layers": list(self.layers),
            "size": self.input.size,
            "net": self._config,
        }


def _filled(net: SmallNet, weights: Mapping[str, Tensor]) -> SmallNet:
    filled(net, {name: value.to(torch.float32) for name, value in weights.items()}, "built-in encoder")
    require_finite(net.state_dict(), "built-in encoder")
    return net.eval().requires_grad_(False)


def _input(net: Mapping[str, Any], size: int | None) -> Input:
    spec = net["input"]
    side = int(spec["size"] if size is None else size)
    if side < SMALLEST:
        raise ConfigError(f"input size {side} is smaller than the {SMALLEST} pixels that the built-in encoder can see")
    return Input(side, int(spec["channels"]), tuple(map(float, spec["mean"])), tuple(map(float, spec["std"])))
