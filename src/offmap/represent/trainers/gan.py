"""An adversarial model with an encoder, trained from scratch on normal images; for the methods f_anogan and ganomaly."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from offmap.core.encoder import Encoder, Input
from offmap.core.errors import BundleError, ConfigError
from offmap.core.trainer import Event, Examples, Trained, Trainer
from offmap.represent.gan import GANEncoder
from offmap.represent.layers import normalise
from offmap.represent.nets.gan import AdversarialModel
from offmap.represent.train.gan import GANPlan, train_gan
from offmap.represent.train.judged import Judged
from offmap.represent.train.normal_images import LEAST

WEAK = 0.6
"""AUROC of drawn anomalies below which the card warns."""


@dataclass(frozen=True)
class GAN(GANPlan, Trainer):
    """A small generator and critic, then an encoder into the generator's codes; no labels.

    Args:
        channels: 1 or 3; colour becomes grey for one, grey is repeated for three.

    The others are those of ``GANPlan`` and of ``Trainer``.
    """

    channels: int = 1

    fewest: ClassVar[int] = LEAST
    in_step: ClassVar[bool] = True
    reference: ClassVar[str] = (
        "Schlegl et al., f-AnoGAN: Fast Unsupervised Anomaly Detection with Generative Adversarial Networks, Med. Image Anal. 54, 2019"
    )

    def __post_init__(self) -> None:
        GANPlan.__post_init__(self)
        Trainer.__post_init__(self)
        self.shape(self.channels, 2)

    @property
    def input(self) -> Input:
        return Input(self.size, self.channels, (0.5,) * self.channels, (0.5,) * self.channels)

    def open(self, classes: int, state: Mapping[str, Tensor] | None, *, device: torch.device) -> Encoder:
        shape = self.shape(self.channels, 2)
        if state is None:
            return GANEncoder(AdversarialModel(shape), device=device)
        try:
            return GANEncoder.rebuilt({"net": shape.to_json()}, state, device=device)
        except BundleError as error:
            raise ConfigError(str(error)) from error

    def train(
        self, data: Examples, *, seed: int, device: torch.device, folder: Path | None = None, progress: Event | None = None
    ) -> Trained:
        areas: list[float] = []

        def tell(now: Judged) -> None:
            if now.step % self.check_every and now.done < 1:
                return
            areas.extend([round(now.area, 4)] if math.isfinite(now.area) else [])
            if progress is not None:
                values = {"loss": now.loss, "held_out_loss": now.held_out, "drawn_anomalies_auroc": now.area}
                told = {k: round(v, 4) for k, v in values.items() if math.isfinite(v)}
                progress({"event": "train", "done": now.step, "total": self.steps, **told})

        grey = normalise(data.images, Input(self.size, self.channels, (0.0,) * self.channels, (1.0,) * self.channels))
        found = train_gan(grey, self, out=folder, seed=seed, device=str(device), resume=True, held_out=data.check, progress=tell)
        facts = {"steps": found.steps, "kept_step": found.kept, "drawn_anomalies_auroc": areas}
        weak = (
            f"The model hardly finds anomalies that were drawn into unseen images: AUROC {found.area:.2f}; train longer or on more images"
        )
        state = {name: value.detach().cpu() for name, value in found.model.state_dict().items()}
        return Trained(state, facts, [*found.notes, *([weak] if found.area < WEAK else [])])
