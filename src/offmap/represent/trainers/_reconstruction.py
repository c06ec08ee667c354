"""What trainers of networks that restore images share."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.encoder import Encoder, Input
from offmap.core.errors import BundleError, ConfigError
from offmap.core.trainer import Event, Examples, Sheet, Trained
from offmap.represent.autoencoder import AutoencoderEncoder
from offmap.represent.layers import normalise
from offmap.represent.nets.autoencoder import Autoencoder, AutoencoderShape, autoencoder
from offmap.represent.train.followed import Followed
from offmap.represent.train.normal_images import LEAST
from offmap.represent.train.objectives import ReconstructionPlan
from offmap.represent.train.reconstruction import train_reconstruction
from offmap.represent.train.samples import COLUMNS, compared
from offmap.represent.trainers._spatial import Spatial

WEAK = 0.6
"""AUROC of drawn anomalies below which the card warns."""


@dataclass(frozen=True)
class ReconstructionTrainer(ReconstructionPlan, Spatial):
    """Trains one network of the autoencoder family on square images or cubic volumes; no labels.

    Args:
        size: side of the images in pixels, of volumes in voxels.
        channels: 1 or 3; colour becomes grey for one, grey is repeated for three.
    """

    size: int = 64
    channels: int = 1

    fewest: ClassVar[int] = LEAST
    in_step: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        Spatial.__post_init__(self)
        if not 8 <= self.size <= 512 or self.channels not in (1, 3):
            raise ConfigError(f"[train] size = {self.size} must lie in 8..512, channels = {self.channels} be 1 or 3")
        self._network()

    @property
    def input(self) -> Input:
        return Input(self.size, self.channels, (0.0,) * self.channels, (1.0,) * self.channels, self.axes)

    def _network(self) -> AutoencoderShape:
        return self.shape(self.channels, self.input.sides)

    def open(self, classes: int, state: Mapping[str, Tensor] | None, *, device: torch.device) -> Encoder:
        if state is None:
            return AutoencoderEncoder(autoencoder(self._network()), device=device)
        try:
            return AutoencoderEncoder.rebuilt({"net": self._network().to_json()}, state, device=device)
        except BundleError as error:
            raise ConfigError(str(error)) from error

    def seen(self, images: Float[Tensor, "n c *s"]) -> Float[Tensor, "n d *s"]:
        """With the network's channels."""
        found = normalise(images, self.input)
        return found.expand(-1, self.channels, *found.shape[2:])

    def train(
        self, data: Examples, *, seed: int, device: torch.device, folder: Path | None = None, progress: Event | None = None
    ) -> Trained:
        follow = Followed(self.check_every, self.steps, progress, figures=5)

        found = train_reconstruction(
            self.seen(data.images), self, out=folder, seed=seed, device=str(device), resume=True, held_out=data.check, progress=follow
        )
        facts = {"steps": found.steps, "kept_step": found.kept, **follow.facts()}
        weak = (
            f"The network hardly finds anomalies that were drawn into unseen images: AUROC {found.area:.2f}; train longer or on more images"
        )
        state = {name: value.detach().cpu() for name, value in found.net.state_dict().items()}
        with torch.no_grad():
            sheets = self._sheets(found.net, self.seen(data.images[data.check[:COLUMNS]]), seed)
        return Trained(state, facts, [*found.notes, *([weak] if found.area < WEAK else [])], sheets)

    def _sheets(self, net: Autoencoder, own: Float[Tensor, "n c *s"], seed: int) -> list[Sheet]:
        """Pictures of a trained network.

        Args:
            own: some images that trained nothing, in [0, 1].
        """
        words = (
            "Above, images that trained nothing; below, what the network makes of them. View, posture and size should be the same; "
            "blurred is usual, for what is fine is not kept."
        )
        return [compared([2 * own - 1, 2 * net(own).images - 1], words)]
