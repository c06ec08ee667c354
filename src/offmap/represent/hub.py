"""Any vision encoder of `transformers`, by name or folder: DINOv2 and 3, SigLIP, RAD-DINO, MobileNetV2, ResNet, ConvNeXt, ViT, Swin."""

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offmap.core.encoder import Encoder, Input
from offmap.core.errors import ConfigError
from offmap.core.types import Signals
from offmap.represent.digest import tensors_sha256
from offmap.represent.hub_files import Files, find_folder, read_files, read_input
from offmap.represent.hub_model import Hidden, LastHidden, base_of, build, default_layers, hidden_of, memory_format, projection
from offmap.represent.layers import chosen, joined, map_names, map_signals, normalise, read_layers, wanted

KEPT = 200_000_000
"""Bytes of weights up to which a gate keeps its own copy."""

CHUNK = {"cpu": 8}
"""Images a pass by kind of device (64 elsewhere): on a CPU the maps of 8 stay in the cache, which is three times faster than 32."""


class HubEncoder(Encoder):
    """A `transformers` model, read from safetensors only and computed in float32.

    Layers: ``layer.<i>`` is ``hidden_states[i]`` (of a transformer: the patch tokens after block i, 0 = after the embedding; of
    MobileNetV2: after inverted residual block i, from 0; of ResNet and ConvNeXt: after stage i, 0 = the stem), ``final`` the last
    hidden state. Default: transformers three evenly spaced blocks and the last; convolutional networks the
    last layer of each size and the last. Besides ``features.<layer>`` (mean and deviation over positions or patch tokens) and
    ``feature_map.<layer> (N, C, h, w)``: ``features.cls`` where there is a class token, and for models with a classification head
    ``logits``, ``features.penultimate`` (the head's input), ``head.weight`` and ``head.bias``; for image and text models such as CLIP
    and SigLIP, of which the vision half is run, ``image_embedding``.

    Args:
        files: what the folder holds.
        name: ``hub:NAME_OR_DIR``.
        layers: those to give; the default ones when empty.
        spec: what it wants to see, in place of ``preprocessor_config.json``.

    Raises:
        ConfigError: not an image model, unknown layer, no input size, or weights that do not fit.
        NotAvailableError: transformers is not installed.
    """

    def __init__(
        self, files: Files, name: str, *, layers: Sequence[str] = (), spec: Input | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.name = name
        self.input = spec if spec is not None else read_input(files.processor, name)
        self.sha256 = tensors_sha256(files.tensors, note=json.dumps(files.config, sort_keys=True))
        size = sum(t.numel() * t.element_size() for t in files.tensors.values())
        self._kept = dict(files.tensors) if size <= KEPT else None
        self._model_config = dict(files.config)
        self._model = build(files, name).to(device=device)
        self._head = _head(self._model)
        self.class_names = _class_names(files.config, self.classes)
        self._project = projection(files)
        if self._project is not None:
            self._project.to(device)
        first = self._run(torch.rand(1, 1, self.input.size, self.input.size, generator=torch.Generator().manual_seed(0)).to(device))
        self.layers = chosen(layers, tuple(first.maps), name) if layers else default_layers(str(files.config["model_type"]), first)
        self.provides = map_names(self.layers) | {"image"} | set(first.vectors) | ({"head.weight", "head.bias"} if self._head else set())

    @classmethod
    def open(cls, name: str, *, layers: Sequence[str] = (), spec: Input | None = None, device: torch.device | str = "cpu") -> "HubEncoder":
        """Open a folder, or a name of the model hub (local copy first).

        Args:
            name: with or without the prefix ``hub:``.

        Raises:
            NotAvailableError: no such folder or download, or transformers is not installed.
            ConfigError: as the class.
        """
        bare = name.removeprefix("hub:")
        return cls(read_files(find_folder(bare)), f"hub:{bare}", layers=layers, spec=spec, device=device)

    @classmethod
    def from_bundle(cls, config: Mapping[str, Any], state: Mapping[str, Tensor], *, device: torch.device | str = "cpu") -> "HubEncoder":
        """Build from what ``config`` and ``state`` gave, without the folder."""
        files = Files(config["model"], {}, state)
        return cls(files, config["name"], layers=config["layers"], spec=input_from(config["input"]), device=device)

    def encode(self, images: Float[Tensor, "n c h w"], needs: frozenset[str]) -> Signals:
        """As ``Encoder.encode``.

        Raises:
            SignalError: neither 1 nor 3 channels.
        """
        want = wanted(needs, self.provides, self.layers)
        signals = {"image": images} if "image" in want else {}
        if self._head is not None:
            signals |= {f"head.{k}": v for k, v in _head_tensors(self._head).items() if f"head.{k}" in want}
        if not want - {"image", "head.weight", "head.bias"}:
            return signals
        return signals | joined([self._signals(part, want) for part in images.split(CHUNK.get(images.device.type, 64))])

    def _signals(self, images: Tensor, want: frozenset[str]) -> dict[str, Tensor]:
        hidden = self._run(images)
        maps = {layer: hidden.maps[layer] for layer in read_layers(want, self.layers)}
        return map_signals(maps, want, self.layers[-1]) | {k: v for k, v in hidden.vectors.items() if k in want}

    def _run(self, images: Tensor) -> Hidden:
        with torch.no_grad():
            return hidden_of(self._model, self._pixels(images), self._head, self._project)

    def _pixels(self, images: Tensor) -> Tensor:
        pixels = normalise(images, self.input)
        return pixels.expand(-1, self.input.channels, -1, -1).contiguous(memory_format=memory_format(self._model))

    def logits_of(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of prepared images, part of their graph where the caller has gradients on.

        Raises:
            ConfigError: the model has no classification head.
            SignalError: neither 1 nor 3 channels.
        """
        if self._head is None:
            raise ConfigError(f"{self.name} has no head that gives logits")
        return hidden_of(self._model, self._pixels(images), self._head).vectors["logits"]

    @property
    def classes(self) -> int:
        """Number of logits, 0 without a head."""
        return self._head.out_features if self._head is not None else 0

    def backbone(self) -> nn.Module:
        """The encoder's own network, from normalised pixels to the last hidden state, ``(N, C, h, w)`` or tokens ``(N, T, C)``."""
        return LastHidden(base_of(self._model))

    def to(self, device: torch.device | str) -> "HubEncoder":
        """The same encoder on another device."""
        other = copy.copy(self)
        other._model = copy.deepcopy(self._model).to(device)
        other._head = _head(other._model)
        other._project = copy.deepcopy(self._project)
        if other._project is not None:
            other._project.to(device)
        return other

    def state(self) -> dict[str, Tensor] | None:
        """Weights in the types of the file; None above 200 MB."""
        return None if self._kept is None else dict(self._kept)

    def config(self) -> dict[str, Any]:
        """Layers, input and the model's configuration."""
        return {
            "kind": "hub",
            "name": self.name,
            "sha256": self.sha256,
            "layers": list(self.layers),
            "input": self.input.to_json(),
            "model": self._model_config,
        }


def input_from(values: Mapping[str, Any]) -> Input:
    """The ``Input`` of its JSON values.

    Raises:
        ConfigError: a value is missing or makes no sense.
    """
    try:
        spec = Input(int(values["size"]), int(values["channels"]), tuple(map(float, values["mean"])), tuple(map(float, values["std"])))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"the encoder's input lacks or garbles {error}") from error
    if spec.size < 1 or spec.channels not in (1, 3) or min(spec.std) <= 0 or not len(spec.mean) == len(spec.std) == spec.channels:
        raise ConfigError(f"the encoder's input makes no sense: {spec}")
    return spec


def _class_names(config: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """``id2label`` of the configuration; none where it is not one different name a logit, or holds the placeholders ``LABEL_0``."""
    given = config.get("id2label")
    table = {str(k): str(v) for k, v in given.items()} if isinstance(given, Mapping) else {}
    names = tuple(table.get(str(k), "") for k in range(count))
    known = len(table) == count == len(set(names)) and all(name.strip() for name in names)
    return names if known and any(name != f"LABEL_{k}" for k, name in enumerate(names)) else ()


def _head(model: nn.Module) -> nn.Linear | None:
    base = {id(m) for m in base_of(model).modules()}
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and id(m) not in base]
    return linear[-1] if linear else None


def _head_tensors(head: nn.Linear) -> dict[str, Tensor]:
    bias = head.bias.detach() if head.bias is not None else head.weight.new_zeros(head.out_features)
    return {"weight": head.weight.detach(), "bias": bias}
