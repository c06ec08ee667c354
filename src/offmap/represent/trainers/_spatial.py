"""What trainers of networks that see images or whole volumes share."""

from dataclasses import dataclass, replace
from typing import Any, TypeVar

from offmap.core.errors import ConfigError
from offmap.core.trainer import Trainer

T = TypeVar("T", bound="Spatial")


@dataclass(frozen=True)
class Spatial(Trainer):
    """Trains a network of two axes of space, or of three: `offmap fit --volumes` sets them.

    Args:
        axes: 2 for images, 3 for volumes; a volume costs as many times more as it has slices.
    """

    axes: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.axes not in (2, 3):
            raise ConfigError(f"[train] axes = {self.axes} must be 2 (images) or 3 (volumes)")

    def params(self) -> dict[str, Any]:
        """As ``Component.params``; two axes go without saying, as in gates that were fitted before there were three."""
        return {key: value for key, value in super().params().items() if (key, value) != ("axes", 2)}

    def over_volumes(self: T) -> T:
        """As ``Trainer.over_volumes``."""
        return replace(self, axes=3)
