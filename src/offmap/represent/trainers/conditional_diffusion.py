"""A pixel diffusion model that is told of classes: of the label, or of any column of a table, such as the view or the scanner."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch

from offmap.core.errors import ConfigError
from offmap.core.trainer import Event, Examples, Trained
from offmap.represent.nets.unet import UNetShape
from offmap.represent.trainers.diffusion import Diffusion


@dataclass(frozen=True)
class ConditionalDiffusion(Diffusion):
    """As ``diffusion``, with a label for each training image; some are shown without, so that the network can do without.

    New images need no label.

    Args:
        condition: what the network is told when it scores: the class that the image looks most like (``likeliest``, three passes a class
            more), or nothing (``none``).
        label_dropout: share of the images that are shown without their label.

    The others are those of ``diffusion``.
    """

    condition: Literal["likeliest", "none"] = "likeliest"
    label_dropout: float = 0.2

    labelled: ClassVar[bool] = True
    reference: ClassVar[str] = "Ho and Salimans, Classifier-Free Diffusion Guidance, 2022, arXiv 2207.12598"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.label_dropout <= 1:
            raise ConfigError(f"[train] label_dropout = {self.label_dropout} must lie above 0 and up to 1")

    def _network(self, classes: int) -> UNetShape:
        return replace(super()._network(classes), classes=classes)

    @property
    def _told(self) -> bool:
        return self.condition == "likeliest"

    def train(
        self, data: Examples, *, seed: int, device: torch.device, folder: Path | None = None, progress: Event | None = None
    ) -> Trained:
        dropout = self.label_dropout
        return self._trained(data, data.labels, seed=seed, device=device, folder=folder, progress=progress, label_dropout=dropout)
