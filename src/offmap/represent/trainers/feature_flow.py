"""A normalising flow on the feature maps of a frozen encoder; for the method feature_flow."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from offmap.core.errors import ConfigError
from offmap.represent.nets.feature_flow import PositionFlow
from offmap.represent.nets.feature_net import Shapes
from offmap.represent.trainers._features import OnFeatures


@dataclass(frozen=True)
class FeatureFlow(OnFeatures):
    """Couplings over the channels at each position, given the position; exact likelihood.

    Args:
        couplings: their number, 1 to 64.
        hidden: width of their networks, 4 to 4096.

    The others are those of ``OnFeatures``.
    """

    couplings: int = 6
    hidden: int = 128
    rate: float = 2e-4

    reference: ClassVar[str] = (
        "Gudovskiy et al., CFLOW-AD, WACV 2022, arXiv 2107.12571; couplings of Dinh et al., Density Estimation Using Real NVP, "
        "ICLR 2017, arXiv 1605.08803"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.couplings <= 64 or not 4 <= self.hidden <= 4096:
            raise ConfigError(f"[train] couplings = {self.couplings} must lie in 1..64, hidden = {self.hidden} in 4..4096")

    def network(self, shapes: Shapes, rng: torch.Generator) -> PositionFlow:
        """As ``OnFeatures.network``."""
        return PositionFlow(shapes, blocks=self.couplings, hidden=self.hidden, rng=rng)
