"""A variational autoencoder, trained from scratch on normal images; for the methods elbo, complexity_corrected, typicality and others."""

from dataclasses import dataclass
from typing import ClassVar

from offmap.represent.train.objectives import VAEPlan
from offmap.represent.trainers._reconstruction import ReconstructionTrainer


@dataclass(frozen=True)
class VAE(VAEPlan, ReconstructionTrainer):
    """A variational autoencoder with a Gaussian decoder of one deviation.

    Fields are those of ``VAEPlan``, ``Schedule`` and ``Trainer``, and ``size`` and ``channels``.
    """

    reference: ClassVar[str] = "Kingma and Welling, Auto-Encoding Variational Bayes, ICLR 2014, arXiv 1312.6114"
