"""An encoder that was trained for one gate, which keeps it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core import registry
from offmap.core.component import nearest
from offmap.core.encoder import Encoder
from offmap.core.errors import BundleError, ConfigError
from offmap.core.trainer import Trainer
from offmap.core.types import Signals
from offmap.represent.digest import tensors_sha256

STAGE = "represent.trainers"
PREFIX = "train:"
"""Of the encoder's name in a recipe."""

MOST = 10_000
"""Classes."""


class TrainedEncoder(Encoder):
    """The network of a trainer, with its weights or with fresh ones.

    Args:
        classes: names of the classes in the order of the logits; empty without labels.
        state: weights; fresh ones when None, to learn before training which signals there will be.

    Raises:
        ConfigError: the weights do not fit.
    """

    def __init__(
        self,
        trainer: Trainer,
        classes: Sequence[str] = (),
        state: Mapping[str, Tensor] | None = None,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        self.trainer, self.class_names = trainer, tuple(classes)
        self._state = dict(state or {})
        self.inner = trainer.open(len(self.class_names), state, device=torch.device(device))
        self.name = f"{PREFIX}{trainer.method()}"
        self.layers, self.provides, self.input = self.inner.layers, self.inner.provides, self.inner.input
        note = json.dumps([self.name, trainer.params(), self.class_names], sort_keys=True)
        self.sha256 = tensors_sha256(self._state, note=note)

    @classmethod
    def from_bundle(cls, config: Mapping[str, Any], state: Mapping[str, Tensor], *, device: torch.device | str = "cpu") -> "TrainedEncoder":
        """Build from what ``config`` and ``state`` gave.

        Raises:
            BundleError: no such trainer, or values and weights that do not fit each other.
        """
        try:
            classes = [str(name) for name in config["classes"]]
            if len(classes) > MOST:
                raise ConfigError(f"{len(classes)} classes, {MOST} at most")
            found = cls(named(config["trainer"]).from_params(config["params"], where="train"), classes, state, device=device)
        except (KeyError, TypeError, ConfigError) as error:
            raise BundleError(f"the gate's encoder cannot be built again: {error}") from error
        if found.sha256 != config.get("sha256"):
            raise BundleError(f"the gate's network has SHA-256 {found.sha256}, its manifest says {config.get('sha256')}: it was damaged")
        return found

    @property
    def classes(self) -> int:
        """Number of logits; 0 where the network was trained without labels."""
        return self.inner.classes if self.class_names else 0

    def encode(self, images: Float[Tensor, "n c *s"], needs: frozenset[str]) -> Signals:
        """As ``Encoder.encode``."""
        return self.inner.encode(images, needs)

    def ready(self, needs: frozenset[str]) -> None:
        """As ``Encoder.ready``."""
        self.inner.ready(needs)

    def to(self, device: torch.device | str) -> "TrainedEncoder":
        """The same encoder on another device."""
        return TrainedEncoder(self.trainer, self.class_names, self._state or None, device=device)

    def state(self) -> dict[str, Tensor]:
        """All weights: nobody else has them."""
        return dict(self._state)

    def config(self) -> dict[str, Any]:
        """Trainer, its parameters, names of the classes."""
        return {
            "kind": "trained",
            "name": self.name,
            "sha256": self.sha256,
            "trainer": self.trainer.method(),
            "params": self.trainer.params(),
            "classes": list(self.class_names),
        }


def named(name: str) -> type[Trainer]:
    """The trainer of a file name.

    Raises:
        ConfigError: no such trainer, with the nearest name.
    """
    known = registry.names(STAGE)
    if name not in known:
        raise ConfigError(f"there is no trainer {name!r}{nearest(name, list(known))}. There are: {', '.join(known)}")
    return registry.load(STAGE, name, Trainer)


def trainer_of(spec: str) -> type[Trainer] | None:
    """The trainer that an encoder's name asks for, None where it names a network that is there already.

    Raises:
        ConfigError: no such trainer.
    """
    return named(spec.removeprefix(PREFIX)) if spec.startswith(PREFIX) else None
