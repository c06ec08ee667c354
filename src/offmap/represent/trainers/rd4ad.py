"""A student that draws the feature maps of a frozen encoder again; for the method rd4ad."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from offmap.core.errors import ConfigError
from offmap.represent.nets.distillation import Student
from offmap.represent.nets.feature_net import Shapes
from offmap.represent.trainers._features import OnFeatures


@dataclass(frozen=True)
class RD4AD(OnFeatures):
    """Reverse distillation: from the maps of three layers to a narrow code, and back.

    Args:
        width: channels of code and decoder, 4 to 1024.

    The others are those of ``OnFeatures``.
    """

    width: int = 64

    depth: ClassVar[int] = 3
    reference: ClassVar[str] = "Deng & Li, Anomaly Detection via Reverse Distillation from One-Class Embedding, CVPR 2022, arXiv 2201.10703"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 4 <= self.width <= 1024:
            raise ConfigError(f"[train] width = {self.width} must lie in 4..1024")

    def network(self, shapes: Shapes, rng: torch.Generator) -> Student:
        """As ``OnFeatures.network``."""
        return Student(shapes, width=self.width, rng=rng)
