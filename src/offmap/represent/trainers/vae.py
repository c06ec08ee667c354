"""A variational autoencoder, trained from scratch on normal images; for the methods elbo, complexity, typicality, dose and others."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.encoder import Encoder
from offmap.core.errors import BundleError, ConfigError
from offmap.core.trainer import Event, Examples, Sheet, Trained
from offmap.represent.autoencoder import AutoencoderEncoder
from offmap.represent.companions import WithCompanions
from offmap.represent.elbo_slopes import decoder_weights
from offmap.represent.nets import autoencoder as nets
from offmap.represent.train.companions import Beside, train_beside
from offmap.represent.train.followed import Followed
from offmap.represent.train.objectives import VAEPlan
from offmap.represent.train.samples import COLUMNS, ROWS, made_up
from offmap.represent.trainers._reconstruction import ReconstructionTrainer


@dataclass(frozen=True)
class VAE(Beside, VAEPlan, ReconstructionTrainer):
    """A variational autoencoder with a Gaussian decoder of one deviation, and models beside it that some methods need.

    Fields are those of ``VAEPlan``, ``Schedule``, ``Beside`` and ``Trainer``, and ``size`` and ``channels``.
    """

    reference: ClassVar[str] = "Kingma and Welling, Auto-Encoding Variational Bayes, ICLR 2014, arXiv 1312.6114"

    def __post_init__(self) -> None:
        Beside.__post_init__(self)
        VAEPlan.__post_init__(self)

    def open(self, classes: int, state: Mapping[str, Tensor] | None, *, device: torch.device) -> Encoder:
        if state is None:
            return self._promised(device)
        try:
            return WithCompanions.rebuilt({"net": self._network().to_json()}, state, device=device)
        except BundleError as error:
            raise ConfigError(str(error)) from error

    def train(
        self, data: Examples, *, seed: int, device: torch.device, folder: Path | None = None, progress: Event | None = None
    ) -> Trained:
        found = super().train(data, seed=seed, device=device, folder=folder, progress=progress)
        tell = Followed(self.check_every, self.steps, progress, criterion=None, what="companion", figures=5)
        beside = train_beside(
            self.seen(data.images),
            self,
            self,
            out=folder,
            seed=seed,
            device=str(device),
            resume=True,
            held_out=data.check,
            progress=tell,
        )
        return replace(found, state={**found.state, **beside})

    def _sheets(self, net: nets.Autoencoder, own: Float[Tensor, "n c *s"], seed: int) -> list[Sheet]:
        pairs = super()._sheets(net, own, seed)
        if not isinstance(net, nets.VAE):
            return pairs
        codes = torch.randn(COLUMNS * ROWS, net.shape.latent, generator=torch.Generator().manual_seed(seed))
        return [made_up(2 * net.decode(codes) - 1, "Drawn by the model from its prior; blurred is usual."), *pairs]

    def _promised(self, device: torch.device) -> Encoder:
        """With fresh weights, to tell which signals there will be."""
        own = AutoencoderEncoder(nets.autoencoder(self._network()), device=device)
        if not (self.background or self.members > 1 or self.gradients) or not isinstance(own.model, nets.VAE):
            return own
        gradients = {name: torch.zeros_like(value) for name, value in decoder_weights(own.model).items()}
        return WithCompanions(
            own,
            background=own if self.background else None,
            others=[own] * (self.members - 1),
            gradients=gradients if self.gradients else None,
        )
