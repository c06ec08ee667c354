"""A dense autoencoder, trained from scratch on normal images; for the methods reconstruction and latent_distance."""

from dataclasses import dataclass
from typing import ClassVar

from offmap.represent.train.objectives import AutoencoderPlan
from offmap.represent.trainers._reconstruction import ReconstructionTrainer


@dataclass(frozen=True)
class Autoencoder(AutoencoderPlan, ReconstructionTrainer):
    """A convolutional autoencoder with a short code; with ``uncertainty`` it learns the variance of its errors, too (AE-U).

    Fields are those of ``AutoencoderPlan``, ``Schedule`` and ``Trainer``, and ``size`` and ``channels``.
    """

    reference: ClassVar[str] = (
        "Mao et al., Abnormality Detection in Chest X-Ray Images Using Uncertainty Prediction Autoencoders, MICCAI 2020 (AE-U)"
    )
