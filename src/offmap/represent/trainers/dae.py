"""A denoising autoencoder, trained from scratch on normal images with coarse noise; for the method reconstruction and its map."""

from dataclasses import dataclass
from typing import ClassVar

from offmap.represent.train.objectives import DAEPlan
from offmap.represent.trainers._reconstruction import ReconstructionTrainer


@dataclass(frozen=True)
class DAE(DAEPlan, ReconstructionTrainer):
    """A U-Net with skips that takes coarse noise off images; at a scoring there is none, and what it takes off is odd.

    Fields are those of ``DAEPlan``, ``Schedule`` and ``Trainer``, and ``size`` and ``channels``.
    """

    reference: ClassVar[str] = (
        "Kascenas et al., Denoising Autoencoders for Unsupervised Anomaly Detection in Brain MRI, MIDL 2022; arXiv 2301.08330"
    )
