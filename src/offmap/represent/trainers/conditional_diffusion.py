"""A pixel diffusion model that is told of classes: of the label, or of any column of a table, such as the view or the scanner."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

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

    The others are those of ``diffusion``.
    """

    condition: Literal["likeliest", "none"] = "likeliest"

    labelled: ClassVar[bool] = True
    reference: ClassVar[str] = "Ho and Salimans, Classifier-Free Diffusion Guidance, 2022, arXiv 2207.12598"

    def _network(self, classes: int) -> UNetShape:
        return replace(super()._network(classes), classes=classes)

    @property
    def _told(self) -> bool:
        return self.condition == "likeliest"

    def train(self, data: Examples, *, seed: int, device: torch.device, progress: Event | None = None) -> Trained:
        return self._trained(data, data.labels, seed=seed, device=device, progress=progress)
