"""What trainers of networks that restore images share."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.encoder import Encoder, Input
from offmap.core.errors import BundleError, ConfigError
from offmap.core.trainer import Event, Examples, Trained, Trainer
from offmap.represent.autoencoder import AutoencoderEncoder
from offmap.represent.layers import normalise
from offmap.represent.nets.autoencoder import AutoencoderShape, autoencoder
from offmap.represent.train.judged import Judged
from offmap.represent.train.normal_images import LEAST
from offmap.represent.train.objectives import ReconstructionPlan
from offmap.represent.train.reconstruction import train_reconstruction

WEAK = 0.6
"""AUROC of drawn anomalies below which the card warns."""


@dataclass(frozen=True)
class ReconstructionTrainer(ReconstructionPlan, Trainer):
    """Trains one network of the autoencoder family on square images; no labels.

    Args:
        size: side of the images in pixels.
        channels: 1 or 3; colour becomes grey for one, grey is repeated for three.
    """

    size: int = 64
    channels: int = 1

    fewest: ClassVar[int] = LEAST
    in_step: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        Trainer.__post_init__(self)
        if not 8 <= self.size <= 512 or self.channels not in (1, 3):
            raise ConfigError(f"[train] size = {self.size} must lie in 8..512, channels = {self.channels} be 1 or 3")
        self._network()

    @property
    def input(self) -> Input:
        return Input(self.size, self.channels, (0.0,) * self.channels, (1.0,) * self.channels)

    def _network(self) -> AutoencoderShape:
        return self.shape(self.channels, (self.size, self.size))

    def open(self, classes: int, state: Mapping[str, Tensor] | None, *, device: torch.device) -> Encoder:
        if state is None:
            return AutoencoderEncoder(autoencoder(self._network()), device=device)
        try:
            return AutoencoderEncoder.rebuilt({"net": self._network().to_json()}, state, device=device)
        except BundleError as error:
            raise ConfigError(str(error)) from error

    def seen(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        """With the network's channels."""
        found = normalise(images, self.input)
        return found.expand(-1, self.channels, *found.shape[2:])

    def train(
        self, data: Examples, *, seed: int, device: torch.device, folder: Path | None = None, progress: Event | None = None
    ) -> Trained:
        checks: list[Judged] = []

        def tell(now: Judged) -> None:
            if now.step % self.check_every and now.done < 1:
                return
            checks.append(now)
            if progress is not None:
                values: dict[str, Any] = {"loss": now.loss, "held_out_loss": now.held_out, "drawn_anomalies_auroc": now.area}
                told = {k: round(v, 5) for k, v in values.items() if math.isfinite(v)}
                progress({"event": "train", "done": now.step, "total": self.steps, **told})

        found = train_reconstruction(
            self.seen(data.images), self, out=folder, seed=seed, device=str(device), resume=True, held_out=data.check, progress=tell
        )
        facts = {
            "steps": found.steps,
            "kept_step": found.kept,
            "drawn_anomalies_auroc": [round(now.area, 4) for now in checks if math.isfinite(now.area)],
            "held_out_loss": [round(now.held_out, 5) for now in checks if math.isfinite(now.held_out)],
        }
        weak = (
            f"The network hardly finds anomalies that were drawn into unseen images: AUROC {found.area:.2f}; train longer or on more images"
        )
        state = {name: value.detach().cpu() for name, value in found.net.state_dict().items()}
        return Trained(state, facts, [*found.notes, *([weak] if found.area < WEAK else [])])
