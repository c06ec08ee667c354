"""An autoencoder with a codebook, trained from scratch on normal images; for the methods reconstruction and latent_distance."""

from dataclasses import dataclass
from typing import ClassVar

from offmap.represent.train.objectives import VQVAEPlan
from offmap.represent.trainers._reconstruction import ReconstructionTrainer


@dataclass(frozen=True)
class VQVAE(VQVAEPlan, ReconstructionTrainer):
    """A convolutional autoencoder whose codes are replaced by the nearest entries of a learnt codebook.

    Fields are those of ``VQVAEPlan``, ``Schedule`` and ``Trainer``, and ``size`` and ``channels``.
    """

    reference: ClassVar[str] = "van den Oord et al., Neural Discrete Representation Learning, NeurIPS 2017, arXiv 1711.00937"
