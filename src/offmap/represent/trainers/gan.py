"""An adversarial model with an encoder, trained from scratch on normal images; for the methods f_anogan and ganomaly."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from offmap.core.encoder import Encoder, Input
from offmap.core.errors import BundleError, ConfigError
from offmap.core.trainer import Event, Examples, Sheet, Trained
from offmap.represent.gan import GANEncoder
from offmap.represent.layers import normalise
from offmap.represent.nets.gan import AdversarialModel
from offmap.represent.train.followed import Followed
from offmap.represent.train.gan import GANPlan, train_gan
from offmap.represent.train.judged import Judged
from offmap.represent.train.normal_images import LEAST
from offmap.represent.train.samples import COLUMNS, ROWS, compared, made_up
from offmap.represent.trainers._spatial import Spatial

WEAK = 0.6
"""AUROC of drawn anomalies below which the card warns."""


@dataclass(frozen=True)
class GAN(GANPlan, Spatial):
    """A small generator and critic, then an encoder into the generator's codes; no labels.

    Args:
        channels: 1 or 3; colour becomes grey for one, grey is repeated for three.

    The others are those of ``GANPlan`` and of ``Spatial``.
    """

    channels: int = 1

    fewest: ClassVar[int] = LEAST
    in_step: ClassVar[bool] = True
    reference: ClassVar[str] = (
        "Schlegl et al., f-AnoGAN: Fast Unsupervised Anomaly Detection with Generative Adversarial Networks, Med. Image Anal. 54, 2019"
    )

    def __post_init__(self) -> None:
        GANPlan.__post_init__(self)
        Spatial.__post_init__(self)
        self.shape(self.channels, self.axes)

    @property
    def input(self) -> Input:
        return Input(self.size, self.channels, (0.5,) * self.channels, (0.5,) * self.channels, self.axes)

    def open(self, classes: int, state: Mapping[str, Tensor] | None, *, device: torch.device) -> Encoder:
        shape = self.shape(self.channels, self.axes)
        if state is None:
            return GANEncoder(AdversarialModel(shape), device=device)
        try:
            return GANEncoder.rebuilt({"net": shape.to_json()}, state, device=device)
        except BundleError as error:
            raise ConfigError(str(error)) from error

    def train(
        self, data: Examples, *, seed: int, device: torch.device, folder: Path | None = None, progress: Event | None = None
    ) -> Trained:
        critic = Followed(self.check_every, self.steps, progress, criterion=None, what="critic")
        encoder = Followed(self.check_every, self.steps, progress)

        def tell(now: Judged) -> None:
            (encoder if now.done > 1 - self.encoding else critic)(now)

        grey = normalise(data.images, Input(self.size, self.channels, (0.0,) * self.channels, (1.0,) * self.channels))
        found = train_gan(grey, self, out=folder, seed=seed, device=str(device), resume=True, held_out=data.check, progress=tell)
        facts = {"steps": found.steps, "kept_step": found.kept, **encoder.facts(), **critic.facts()}
        weak = (
            f"The model hardly finds anomalies that were drawn into unseen images: AUROC {found.area:.2f}; train longer or on more images"
        )
        state = {name: value.detach().cpu() for name, value in found.model.state_dict().items()}
        return Trained(state, facts, [*found.notes, *([weak] if found.area < WEAK else [])], _sheets(found.model, grey[data.check], seed))


def _sheets(model: AdversarialModel, held_out: Tensor, seed: int) -> list[Sheet]:
    """What the generator draws, and what it makes of images that trained nothing."""
    own = 2 * held_out[:COLUMNS] - 1
    codes = torch.randn(COLUMNS * ROWS, model.shape.latent, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        drawn, back = model.generator(codes), model.generator(model.encoder(own))
    words = "Above, images that trained nothing; below, what the generator makes of their codes. Same view, posture and size is good."
    return [made_up(drawn, "Drawn by the generator from random codes."), compared([own, back], words)]
