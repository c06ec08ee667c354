"""A discriminator of features and the same with noise, on a frozen encoder; for the method simplenet."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from offmap.core.errors import ConfigError
from offmap.represent.nets.discriminator import Discriminator
from offmap.represent.nets.feature_net import Shapes
from offmap.represent.trainers._features import OnFeatures


@dataclass(frozen=True)
class SimpleNet(OnFeatures):
    """A linear adaptor and a network of one hidden layer, told apart from Gaussian noise.

    Args:
        hidden: width of the hidden layer, 4 to 4096.
        noise: deviation of the noise, in deviations of the features; the paper's 0.015 is in units of the features themselves.
        threshold: th, how far from 0 outputs are to stay.

    The others are those of ``OnFeatures``.
    """

    hidden: int = 256
    noise: float = 0.5
    threshold: float = 0.5

    reference: ClassVar[str] = (
        "Liu et al., SimpleNet: A Simple Network for Image Anomaly Detection and Localization, CVPR 2023, arXiv 2303.15140"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 4 <= self.hidden <= 4096 or not 0 < self.noise <= 10 or not 0 < self.threshold <= 100:
            raise ConfigError(
                f"[train] hidden = {self.hidden} must lie in 4..4096, noise = {self.noise} be above 0 and up to 10, "
                f"threshold = {self.threshold} above 0 and up to 100"
            )

    def network(self, shapes: Shapes, rng: torch.Generator) -> Discriminator:
        """As ``OnFeatures.network``."""
        return Discriminator(shapes, hidden=self.hidden, noise=self.noise, margin=self.threshold, rng=rng)
