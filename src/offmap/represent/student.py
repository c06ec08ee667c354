"""A student network as an encoder: the score of an expensive detector, learned, and its map."""

import json
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.encoder import Encoder, Input
from offmap.core.errors import ConfigError
from offmap.core.types import Signals
from offmap.represent.digest import tensors_sha256
from offmap.represent.filled import filled, require_finite
from offmap.represent.layers import normalise
from offmap.represent.nets.student import Student, StudentShape

SCORE, MAP = "student.score", "student.map"


class StudentEncoder(Encoder):
    """``student.score (N,)`` and ``student.map (N, 1, *s)``, whose mean over space is the score.

    Args:
        net: trained.
        size: side of the images that it was trained on.

    Raises:
        BundleError: weights that are not finite.
    """

    reentrant: ClassVar[bool] = True

    def __init__(self, net: Student, size: int, *, name: str = "student", device: torch.device | str = "cpu") -> None:
        self._net = net.to(device).eval().requires_grad_(False)
        channels = net.shape.channels
        self.name, self.layers, self.provides = name, (), frozenset({SCORE, MAP, "image"})
        self.input = Input(size, channels, (0.5,) * channels, (0.5,) * channels, net.shape.axes)
        weights = self.state()
        require_finite(weights, "student")
        self.sha256 = tensors_sha256(weights, note=json.dumps(self._description(), sort_keys=True))

    def encode(self, images: Float[Tensor, "n c *s"], needs: frozenset[str]) -> Signals:
        """As ``Encoder.encode``."""
        signals: dict[str, Tensor] = {"image": images} if "image" in needs else {}
        if needs & {SCORE, MAP}:
            with torch.no_grad():
                found = self._net(normalise(images, self.input))
            signals |= {MAP: found, SCORE: found.flatten(1).double().mean(dim=1).float()}
        return {name: value for name, value in signals.items() if name in needs}

    def to(self, device: torch.device | str) -> "StudentEncoder":
        """The same encoder on another device."""
        return self.rebuilt(self._description(), self.state(), name=self.name, device=device)

    def state(self) -> dict[str, Tensor]:
        """Weights in float32."""
        return {name: value.detach() for name, value in self._net.state_dict().items()}

    def _description(self) -> dict[str, Any]:
        return {"net": self._net.shape.to_json(), "size": self.input.size}

    def config(self) -> dict[str, Any]:
        """Architecture and size."""
        return {"kind": "student", "name": self.name, "sha256": self.sha256, **self._description()}

    @classmethod
    def rebuilt(
        cls, config: Mapping[str, Any], state: Mapping[str, Tensor], *, name: str = "student", device: torch.device | str = "cpu"
    ) -> "StudentEncoder":
        """From what ``config`` and ``state`` gave.

        Raises:
            ConfigError: the configuration makes no sense.
            BundleError: weights that do not fit it or are not finite.
        """
        try:
            net, size = Student(StudentShape.from_json(config["net"])), int(config["size"])
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"the description of the student makes no sense: {type(error).__name__} {error}") from error
        return cls(filled(net, state, "student"), size, name=name, device=device)
