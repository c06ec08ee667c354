"""A diffusion model of the feature maps of a frozen encoder, to be inverted; for the method invad."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from offmap.core.errors import ConfigError
from offmap.represent.nets.feature_denoiser import FeatureDenoiser
from offmap.represent.nets.feature_net import Shapes
from offmap.represent.trainers._features import OnFeatures


@dataclass(frozen=True)
class InvAD(OnFeatures):
    """Residual convolutions predict the noise in whitened maps (the paper has a transformer on maps of EfficientNet-B4 as they are).

    Args:
        width: channels, 8 to 1024.
        blocks: residual blocks, 1 to 32.
        inversion: S, passes from the features to noise, 1 to 100.

    The others are those of ``OnFeatures``.
    """

    width: int = 128
    blocks: int = 3
    inversion: int = 3

    reference: ClassVar[str] = (
        "Sakai et al., InvAD: Inversion-based Reconstruction-Free Anomaly Detection with Diffusion Models, CVPR 2026, arXiv 2504.05662"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 8 <= self.width <= 1024 or not 1 <= self.blocks <= 32 or not 1 <= self.inversion <= 100:
            raise ConfigError(
                f"[train] width = {self.width} must lie in 8..1024, blocks = {self.blocks} in 1..32, inversion = {self.inversion} in 1..100"
            )

    def network(self, shapes: Shapes, rng: torch.Generator) -> FeatureDenoiser:
        """As ``OnFeatures.network``."""
        return FeatureDenoiser(shapes, width=self.width, depth=self.blocks, steps=self.inversion, rng=rng)
