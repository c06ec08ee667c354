"""A denoising autoencoder, trained from scratch on normal images with coarse noise; for the method reconstruction and its map."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.trainer import Sheet
from offmap.represent.nets.autoencoder import Autoencoder
from offmap.represent.train.objectives import DAEPlan
from offmap.represent.train.samples import compared
from offmap.represent.trainers._reconstruction import ReconstructionTrainer


@dataclass(frozen=True)
class DAE(DAEPlan, ReconstructionTrainer):
    """A U-Net with skips that takes coarse noise off images; at a scoring there is none, and what it takes off is odd.

    Fields are those of ``DAEPlan``, ``Schedule`` and ``Trainer``, and ``size`` and ``channels``.
    """

    reference: ClassVar[str] = (
        "Kascenas et al., Denoising Autoencoders for Unsupervised Anomaly Detection in Brain MRI, MIDL 2022; arXiv 2301.08330"
    )

    def _sheets(self, net: Autoencoder, own: Float[Tensor, "n c *s"], seed: int) -> list[Sheet]:
        noised = self.noised(own, torch.Generator().manual_seed(seed))
        words = (
            "From above: images that trained nothing, the same with coarse noise, and what the network makes of these. "
            "The third row should be like the first."
        )
        return [compared([2 * own - 1, 2 * noised - 1, 2 * net(noised).images - 1], words)]
