"""The contract of an encoder: a batch of prepared images becomes signals, in one pass."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.types import Signals


@dataclass(frozen=True, slots=True)
class Input:
    """What an encoder wants to see.

    Args:
        size: side of its square input in pixels, of its cubic one in voxels.
        channels: 1 or 3; grey images are repeated.
        mean, std: per channel, for pixels in [0, 1]: ``(x - mean) / std``.
        axes: of space, 2 (images) or 3 (volumes).
    """

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    axes: int = 2

    @property
    def sides(self) -> tuple[int, ...]:
        """``(H, W)`` or ``(D, H, W)``."""
        return (self.size,) * self.axes

    def to_json(self) -> dict[str, Any]:
        """JSON values; two axes of space go without saying."""
        return {key: value for key, value in asdict(self).items() if (key, value) != ("axes", 2)}


class Encoder(ABC):
    """A network that hands out named signals; immutable but for the device it lives on.

    Attributes:
        name: as on the command line (``builtin``, ``hub:DIR``, ``classifier:FILE``).
        layers: names from shallow to deep; ``features.last`` is an alias of the last one.
        provides: names of all signals it can give; base names of those that have settings.
        input: what it wants to see.
        sha256: digest of its weights.
        class_names: names of the classes in the order of ``logits``; empty where they are not known for sure.
        reentrant: several threads may call ``encode`` at once (no hooks, no state).
    """

    name: str
    layers: tuple[str, ...]
    provides: frozenset[str]
    input: Input
    sha256: str
    class_names: tuple[str, ...] = ()
    reentrant: ClassVar[bool] = False

    @property
    def classes(self) -> int:
        """Number of ``logits``; 0 where there are none."""
        return 0

    @abstractmethod
    def encode(self, images: Float[Tensor, "n c *s"], needs: frozenset[str]) -> Signals:
        """Signals of prepared images.

        Args:
            images: float32 in [0, 1], C = 1 or 3, on the encoder's device.
            needs: names or patterns (``features.*``) to give; others may be left out.
        """

    def ready(self, needs: frozenset[str]) -> None:
        """Refuse signals that ``provides`` names but that this network cannot give; called before any file is read.

        Raises:
            ConfigError: saying why, and the way out.
        """
        return

    def refused(self, signals: Signals) -> Mapping[int, str]:
        """Rows whose signals show that the image cannot be assessed, with their reason codes; none of most encoders."""
        return {}

    def rehearsal(self) -> "Encoder":
        """The same for one trial whose numbers do not matter, in few passes; itself where an image costs few."""
        return self

    @abstractmethod
    def to(self, device: torch.device | str) -> "Encoder":
        """The same encoder on another device."""

    @abstractmethod
    def state(self) -> dict[str, Tensor] | None:
        """Weights to be kept in a gate (up to 200 MB); None when they are given again at loading."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """JSON values from which, together with ``state``, the same encoder is built again."""
