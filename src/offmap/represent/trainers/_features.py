"""What trainers have in common whose network learns the feature maps of a frozen encoder."""

import json
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from offmap.core.encoder import Encoder, Input
from offmap.core.errors import BundleError, ConfigError
from offmap.core.trainer import Event, Examples, Trained, Trainer
from offmap.represent.encoder import SMALLEST, BuiltinEncoder
from offmap.represent.feature_nets import WithFeatureNet, read_layers_of, shapes_of
from offmap.represent.multi_exit import KEPT
from offmap.represent.nets.feature_net import FeatureNet, Shapes
from offmap.represent.open import open_encoder, rebuild
from offmap.represent.train.checkpoint import under
from offmap.represent.train.features import train_on_features
from offmap.represent.train.followed import Followed
from offmap.represent.train.judged import Schedule
from offmap.represent.train.normal_images import LEAST

WEAK = 0.6
"""AUROC of drawn anomalies below which the card warns."""

CONFIG = "base_config"


@dataclass(frozen=True)
class OnFeatures(Schedule, Trainer):
    """Trains a network on the maps of a frozen encoder, whose own signals stay at hand; no labels.

    The base encoder's weights are kept beside the network's, where they have at most 200 MB; else it is opened again by its name.

    Args:
        base: ``builtin`` or ``hub:NAME_OR_DIR``.
        reads: layers of the base whose maps are learnt; the ones before the deepest when empty.
        size: side of the base's input in pixels; the one it was trained at when None. Of ``builtin`` only.

    The others are those of ``Schedule`` and of ``Trainer``.
    """

    base: str = "builtin"
    reads: tuple[str, ...] = ()
    size: int | None = None
    steps: int | None = 1000
    batch: int = 16
    warmup: int = 50
    average: float = 0.99
    held_out: float = 0.15
    check_every: int = 100

    fewest: ClassVar[int] = LEAST
    in_step: ClassVar[bool] = True
    depth: ClassVar[int] = 2
    """Layers that are read when none is named."""

    def __post_init__(self) -> None:
        Schedule.__post_init__(self)
        Trainer.__post_init__(self)
        if self.base != "builtin" and not self.base.startswith(("builtin:", "hub:")):
            raise ConfigError(f"[train] base = {self.base!r} must be builtin, builtin:DIR or hub:NAME_OR_DIR")
        if self.size is not None and (not SMALLEST <= self.size <= 1024 or not self.base.startswith("builtin")):
            raise ConfigError(f"[train] size = {self.size} must lie in {SMALLEST}..1024, and goes with base = 'builtin' only")

    @property
    def images_only(self) -> str:
        """As ``Trainer.images_only``."""
        return f": it learns the feature maps of the frozen encoder {self.base}, which sees images of two axes"

    @property
    def signal(self) -> str:
        """Name of the map that the network gives."""
        return f"{self.method()}.map"

    @abstractmethod
    def network(self, shapes: Shapes, rng: torch.Generator) -> FeatureNet:
        """A fresh network for maps of these shapes."""

    @property
    def input(self) -> Input:
        return _opened(self.base, self.size, "cpu").input

    def open(self, classes: int, state: Mapping[str, Tensor] | None, *, device: torch.device) -> Encoder:
        weights = dict(state or {})
        try:
            base = self._base(weights, device)
            layers = read_layers_of(base, self.reads, self.depth)
            net = self.network(shapes_of(base, layers, device), torch.Generator().manual_seed(0))
            if state is not None:
                net.load_state_dict(under("net", weights))
            return WithFeatureNet(base, layers, net, self.signal, device=device)
        except (BundleError, RuntimeError, KeyError, ValueError) as error:
            raise ConfigError(f"weights do not fit {self.method()}: {str(error)[:300]}") from error

    def _base(self, weights: Mapping[str, Tensor], device: torch.device) -> Encoder:
        """With the weights that were kept, or opened by its name and compared."""
        if CONFIG not in weights:
            return _opened(self.base, self.size, str(device))
        config = json.loads(bytes(weights[CONFIG].cpu().tolist()))
        if config.get("kind") not in ("builtin", "hub"):
            raise ConfigError(f"the base encoder is of kind {config.get('kind')!r}; builtin or hub expected")
        kept = under("base", dict(weights))
        return rebuild(config, kept or None, given=None if kept else self.base, device=str(device))

    def train(
        self, data: Examples, *, seed: int, device: torch.device, folder: Path | None = None, progress: Event | None = None
    ) -> Trained:
        follow = Followed(self.check_every, self.steps, progress)

        base = _opened(self.base, self.size, str(device))
        layers = read_layers_of(base, self.reads, self.depth)
        net = self.network(shapes_of(base, layers, device), torch.Generator().manual_seed(seed))
        found = train_on_features(
            net, base, layers, data.images, data.check, self, out=folder, seed=seed, device=device, resume=True, progress=follow
        )
        facts = {
            "base": base.name,
            "layers": list(layers),
            "steps": found.steps,
            "kept_step": found.kept,
            **follow.facts(),
        }
        weak = f"The network hardly finds anomalies that were drawn into unseen images: AUROC {found.area:.2f}; train on more images"
        return Trained(_kept(found.net, base), facts, [*found.notes, *([weak] if found.area < WEAK else [])])


def _kept(net: FeatureNet, base: Encoder) -> dict[str, Tensor]:
    """Weights of the network, and of its base where they are not too large."""
    weights = base.state() or {}
    small = sum(t.numel() * t.element_size() for t in weights.values()) <= KEPT
    kept = {f"base.{name}": value.detach().cpu() for name, value in weights.items()} if small else {}
    config = torch.tensor(list(json.dumps(base.config()).encode()), dtype=torch.uint8)
    return {**{f"net.{name}": value.detach().cpu() for name, value in net.state_dict().items()}, **kept, CONFIG: config}


def _opened(spec: str, size: int | None, device: str) -> Encoder:
    if size is None or not spec.startswith("builtin"):
        return open_encoder(spec, device=device)
    _, _, folder = spec.partition(":")
    place = torch.device(device)
    return BuiltinEncoder.from_folder(Path(folder), size=size, device=place) if folder else BuiltinEncoder.shipped(size=size, device=place)
