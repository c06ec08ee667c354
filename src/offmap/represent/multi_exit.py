"""Exits at several depths of a frozen network, and the signals of MECAM that they make possible."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from offmap.core.encoder import Encoder
from offmap.core.errors import ConfigError, SignalError
from offmap.core.signals import base_of
from offmap.core.types import STATIC, Signals
from offmap.represent.digest import tensors_sha256
from offmap.represent.layers import joined, wanted
from offmap.represent.masking import FEATURES, MAP, MASKED, Look, evidence, filled, look_of

CHUNK = 16
"""Images at a time: bounds the memory of the maps of all exits and of the class maps at full size."""

MOST = 4
"""Exits that are added when no layers are named: at the deepest maps."""

KEPT = 200_000_000
"""Bytes of weights up to which a gate keeps the base encoder's copy beside the exits."""

PREFIX = "mecam_exits."
"""Of the exits' tensors among those of the base encoder."""


@dataclass(frozen=True, eq=False)
class Exits:
    """Linear heads on the channels of maps (1 x 1 convolutions), from shallow to deep.

    Args:
        layers: names of the layers whose maps they read; the features of the last one are compared.
        weights, biases: ``(K, C)`` and ``(K,)`` of each.

    Raises:
        ConfigError: no exit, more than nine, fewer than two classes, shapes that do not fit each other, or values that are not finite.
    """

    layers: tuple[str, ...]
    weights: tuple[Float[Tensor, "k _"], ...]
    biases: tuple[Float[Tensor, " k"], ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.layers) == len(self.weights) == len(self.biases) <= 9:
            raise ConfigError(f"exits at {', '.join(self.layers) or 'no layer'}: one to nine are expected, each with weight and bias")
        classes = len(self.biases[0])
        for layer, weight, bias in zip(self.layers, self.weights, self.biases, strict=True):
            if len(weight) != classes or len(bias) != classes or classes < 2:
                raise ConfigError(
                    f"the exit at {layer} has weight {tuple(weight.shape)} and bias {tuple(bias.shape)}; "
                    f"(K, C) and (K,) with the same K of 2 or more at every exit expected"
                )
            if not bool(torch.isfinite(weight).all() and torch.isfinite(bias).all()):
                raise ConfigError(f"the exit at {layer} has weights that are not finite")

    @property
    def classes(self) -> int:
        """K."""
        return len(self.biases[0])

    def tensors(self) -> dict[str, Tensor]:
        """As kept in a gate."""
        pairs = enumerate(zip(self.weights, self.biases, strict=True))
        return {f"{PREFIX}{i}.{kind}": value for i, pair in pairs for kind, value in zip(("weight", "bias"), pair, strict=True)}

    @classmethod
    def from_tensors(cls, layers: Sequence[str], tensors: Mapping[str, Tensor]) -> "Exits":
        """The inverse of ``tensors``; a missing one is a KeyError."""
        weights, biases = (tuple(tensors[f"{PREFIX}{i}.{kind}"] for i in range(len(layers))) for kind in ("weight", "bias"))
        return cls(tuple(layers), weights, biases)

    def to(self, device: torch.device | str) -> "Exits":
        """The same on another device."""
        return Exits(self.layers, tuple(w.to(device) for w in self.weights), tuple(b.to(device) for b in self.biases))


class WithExits(Encoder):
    """Any encoder with maps that gives the signals of MECAM; the network itself stays as it is.

    The exits belong to the network and not to the detector: the second pass depends on them, so they must be there before the first
    signal is made. Train them with ``train_exits`` on labelled images, best those that the network itself was trained on and not those
    that calibrate the gate, then give this encoder to ``offmap.fit``. A gate keeps them; of a classifier it is given the module again
    at loading, as always.

    ``mecam.features (N, C)``: spatial mean of the deepest exit's map. ``mecam.map (N, 1, H, W)``: evidence M in [0, 1], see
    ``masking.evidence``. ``mecam.masked_features (N, C)``: the same mean of ``x (1 - M) + fill M``, x in [0, 1] before the network's
    own normalisation, so that zero is black. One pass more for each set of settings; the first one is shared with all other signals.
    Settings, all optional: ``exits`` (digits of those that count, 1 the shallowest, ``24``; 0 for all), ``own_class``, ``above_chance``,
    and, of masked features, ``fill`` (place in ``masking.FILLS``).

    Args:
        base: gives ``feature_map.<layer> (N, C, h, w)``: convolutional networks, and transformers of ``hub:``, whose maps are the
            patch tokens on their grid.
        exits: their layers are among the base's.

    Raises:
        ConfigError: the base has no map of one of the exits' layers, or one of another width.
    """

    def __init__(self, base: Encoder, exits: Exits) -> None:
        self.base, self.exits = base, exits
        self.name, self.layers, self.input, self.class_names = base.name, base.layers, base.input, base.class_names
        self.sha256 = tensors_sha256(exits.tensors(), note=f"{base.sha256} {' '.join(exits.layers)}")
        self.provides = base.provides | {FEATURES, MASKED, MAP}
        self._maps = tuple(f"feature_map.{layer}" for layer in exits.layers)
        lacking = [layer for layer, name in zip(exits.layers, self._maps, strict=True) if name not in base.provides]
        if lacking:
            raise ConfigError(f"exits at {', '.join(lacking)}: {base.name} gives maps of {', '.join(mapped(base)) or 'no layer'}")

    @property
    def classes(self) -> int:
        """Number of the network's own logits, not of the exits."""
        return self.base.classes

    def ready(self, needs: frozenset[str]) -> None:
        """As ``Encoder.ready``.

        Raises:
            ConfigError: settings that make no sense or name an exit that is not there.
        """
        own = self._own(needs)
        for name in own:
            look_of(name, len(self.exits.layers))
        self.base.ready(needs - own)

    def _own(self, needs: frozenset[str]) -> frozenset[str]:
        """Names of the signals that are made here."""
        mine = (FEATURES, MASKED, MAP)
        exact = {need for need in needs if base_of(need) in mine}
        return frozenset(exact | {name for name in mine for need in needs if "*" in need and fnmatchcase(name, need)})

    def encode(self, images: Float[Tensor, "n c h w"], needs: frozenset[str]) -> Signals:
        """As ``Encoder.encode``.

        Raises:
            ConfigError: as ``ready``.
            SignalError: the maps are not of the exits' width.
        """
        own = self._own(needs)
        if not own:
            return self.base.encode(images, needs)
        looks = {name: look_of(name, len(self.exits.layers)) for name in own if base_of(name) != FEATURES}
        parts = [self._part(part, needs - own, FEATURES in own, looks) for part in images.split(CHUNK)]
        static = {name: value for name, value in parts[0].items() if name in STATIC}
        return static | joined([{k: v for k, v in part.items() if k not in STATIC} for part in parts])

    def _part(
        self, images: Float[Tensor, "n c h w"], others: frozenset[str], features: bool, looks: Mapping[str, Look]
    ) -> dict[str, Tensor]:
        signals = dict(self.base.encode(images, others | frozenset(self._maps)))
        maps = [self._checked(signals[name], i) for i, name in enumerate(self._maps)]
        keep = wanted(others, self.base.provides, self.base.layers)
        out = {name: value for name, value in signals.items() if name not in self._maps or name in keep}
        if features:
            out[FEATURES] = pooled(maps[-1])
        found: dict[Look, Tensor] = {}
        masked: dict[Look, Tensor] = {}
        for name, look in looks.items():
            plain = look.unfilled()
            if plain not in found:
                found[plain] = evidence(maps, self.exits.weights, self.exits.biases, look, images.shape[2:])
            if base_of(name) == MAP:
                out[name] = found[plain]
                continue
            if look not in masked:
                again = self.base.encode(filled(images, found[plain], look.fill), frozenset(self._maps[-1:]))
                masked[look] = pooled(again[self._maps[-1]])
            out[name] = masked[look]
        return out

    def _checked(self, maps: Tensor, exit: int) -> Float[Tensor, "n c h w"]:
        width = self.exits.weights[exit].shape[1]
        if maps.ndim != 4 or maps.shape[1] != width:
            raise SignalError(f"{self._maps[exit]} of shape {tuple(maps.shape)} must be (N, {width}, h, w) for its exit")
        return maps.float()

    def to(self, device: torch.device | str) -> "WithExits":
        """The same encoder on another device."""
        return WithExits(self.base.to(device), self.exits.to(device))

    def state(self) -> dict[str, Tensor]:
        """The exits, and the weights of the base encoder where it keeps them and all is at most 200 MB."""
        own, base = self.exits.tensors(), self.base.state() or {}
        size = sum(t.numel() * t.element_size() for t in (*own.values(), *base.values()))
        return own | (base if size <= KEPT else {})

    def config(self) -> dict[str, Any]:
        """Layers of the exits and the base encoder."""
        exits = {"exits": list(self.exits.layers)}
        return {"kind": "exits", "name": self.name, "sha256": self.sha256, **exits, "base": self.base.config()}


def pooled(maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c"]:
    """Mean over space in float32."""
    return maps.float().mean(dim=(2, 3))


def mapped(encoder: Encoder) -> tuple[str, ...]:
    """Layers that give a map, from shallow to deep."""
    return tuple(layer for layer in encoder.layers if f"feature_map.{layer}" in encoder.provides)


def train_exits(
    encoder: Encoder,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    layers: Sequence[str] = (),
    strength: float = 1.0,
) -> Exits:
    """Exits for a frozen network: at each layer a multinomial logistic regression on the spatial mean of its map.

    Mean over space and linear head commute, so this trains the 1 x 1 convolution. Classes have equal weight, features are standardised
    (and the scaling folded into the weights); the minimum is unique, so there is no seed. The exits of the paper are trained together
    with the network; adding them afterwards is an extension of this project.

    Args:
        batches: prepared images ``(N, C, H, W)`` in [0, 1] with whole numbers ``(N,)`` as labels; class k is the k-th smallest label.
        layers: from shallow to deep; the four deepest that give a map (all, where there are fewer) when empty.
        strength: scikit-learn's ``C``, the inverse of the penalty.

    Raises:
        ConfigError: an unknown layer, an encoder without maps, labels that are no whole numbers or of one class, or no penalty.
        SignalError: features that are not finite.
    """
    if not strength > 0:
        raise ConfigError(f"exits: strength = {strength} must be greater than 0")
    at = _layers(encoder, layers)
    names = frozenset(f"feature_map.{layer}" for layer in at)
    rows: dict[str, list[Tensor]] = {layer: [] for layer in at}
    labels: list[Tensor] = []
    device = torch.device("cpu")
    for images, given in batches:
        device = images.device
        if given.is_floating_point() or given.shape != images.shape[:1]:
            raise ConfigError(f"labels of shape {tuple(given.shape)} and type {given.dtype} must be whole numbers, one for each image")
        labels.append(given.cpu().long())
        for part in images.split(CHUNK):
            signals = encoder.encode(part, names)
            for layer in at:
                rows[layer].append(pooled(signals[f"feature_map.{layer}"]).double().cpu())
    classes, codes = torch.cat(labels).unique(return_inverse=True) if labels else (torch.empty(0), torch.empty(0))
    if len(classes) < 2:
        raise ConfigError(f"exits need images of two classes or more; the labels hold {len(classes)}")
    fitted = [_fit(torch.cat(rows[layer]), codes, strength, layer) for layer in at]
    return Exits(at, tuple(w for w, _ in fitted), tuple(b for _, b in fitted)).to(device)


def _layers(encoder: Encoder, asked: Sequence[str]) -> tuple[str, ...]:
    known = mapped(encoder)
    if not known:
        raise ConfigError(
            f"{encoder.name} gives no maps (N, C, h, w), so no exits can be added: name layers that do, or give a transformer as hub:DIR"
        )
    wrong = [layer for layer in asked if layer not in known]
    if wrong:
        raise ConfigError(f"exits at {', '.join(wrong)}: {encoder.name} gives maps of {', '.join(known)}")
    return tuple(layer for layer in known if layer in asked) if asked else known[-MOST:]


def _fit(
    rows: Float[Tensor, "n c"], codes: Int[Tensor, " n"], strength: float, layer: str
) -> tuple[Float[Tensor, "k c"], Float[Tensor, " k"]]:
    """Weight and bias; with two classes, those of a symmetric pair."""
    from sklearn.linear_model import LogisticRegression

    if not bool(torch.isfinite(rows).all()):
        raise SignalError(f"exits: the features of {layer} are not finite")
    mean, spread = rows.mean(dim=0), rows.std(dim=0, correction=0)
    spread = spread.clamp_min(1e-2 * float(rows.std(correction=0)) + 1e-12)
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=2000, tol=1e-6)
    model.fit(((rows - mean) / spread).numpy(), codes.numpy())
    weight, bias = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
    if len(bias) == 1:
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    weight = weight / spread
    return weight.float(), (bias - weight @ mean).float()
