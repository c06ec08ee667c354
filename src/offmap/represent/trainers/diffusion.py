"""A pixel diffusion model, trained from scratch on normal images; for the methods msma, diffpath, scoped and others of its kind."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from offmap.core.encoder import Encoder, Input
from offmap.core.errors import BundleError, ConfigError
from offmap.core.trainer import Event, Examples, Trained
from offmap.represent.diffusion import DiffusionEncoder
from offmap.represent.layers import normalise
from offmap.represent.nets.unet import EDMDenoiser, UNetShape
from offmap.represent.train.diffusion import DiffusionPlan, train_diffusion
from offmap.represent.train.followed import Followed
from offmap.represent.train.normal_images import LEAST
from offmap.represent.train.samples import COLUMNS, ROWS, draw, made_up
from offmap.represent.trainers._spatial import Spatial

WEAK = 0.6
"""AUROC of drawn anomalies below which the card warns."""

SIGMA = "sigma_data"


@dataclass(frozen=True)
class Diffusion(DiffusionPlan, Spatial):
    """A small U-Net with the preconditioning of Karras et al.; no labels.

    Args:
        channels: 1 or 3; colour becomes grey for one, grey is repeated for three.

    The others are those of ``DiffusionPlan`` and of ``Spatial``.
    """

    channels: int = 1

    fewest: ClassVar[int] = LEAST
    in_step: ClassVar[bool] = True
    reference: ClassVar[str] = (
        "Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, NeurIPS 2022, arXiv 2206.00364"
    )

    def __post_init__(self) -> None:
        DiffusionPlan.__post_init__(self)
        Spatial.__post_init__(self)
        if not 8 <= self.size <= 512 or self.channels not in (1, 3):
            raise ConfigError(f"[train] size = {self.size} must lie in 8..512, channels = {self.channels} be 1 or 3")

    @property
    def input(self) -> Input:
        return Input(self.size, self.channels, (0.5,) * self.channels, (0.5,) * self.channels, self.axes)

    def _network(self, classes: int) -> UNetShape:
        return UNetShape(self.channels, self.axes, self.widths, self.blocks, fold=self.fold)

    @property
    def _told(self) -> bool:
        return False

    def open(self, classes: int, state: Mapping[str, Tensor] | None, *, device: torch.device) -> Encoder:
        shape = self._network(classes)
        if state is None:
            return DiffusionEncoder(EDMDenoiser(shape, 0.5), self.size, device=device)
        weights = dict(state)
        config = {"net": shape.to_json(), SIGMA: taken(weights, SIGMA), "size": self.size, "told": self._told}
        try:
            return DiffusionEncoder.rebuilt(config, weights, device=device)
        except BundleError as error:
            raise ConfigError(str(error)) from error

    def train(
        self, data: Examples, *, seed: int, device: torch.device, folder: Path | None = None, progress: Event | None = None
    ) -> Trained:
        return self._trained(data, None, seed=seed, device=device, folder=folder, progress=progress)

    def _trained(
        self,
        data: Examples,
        labels: Tensor | None,
        *,
        seed: int,
        device: torch.device,
        folder: Path | None = None,
        progress: Event | None = None,
        label_dropout: float = 0.2,
    ) -> Trained:
        follow = Followed(self.check_every, self.steps, progress)
        grey = normalise(data.images, Input(self.size, self.channels, (0.0,) * self.channels, (1.0,) * self.channels))
        found = train_diffusion(
            grey,
            self,
            out=folder,
            seed=seed,
            device=str(device),
            resume=True,
            held_out=data.check,
            labels=labels,
            label_dropout=label_dropout,
            progress=follow,
        )
        shown = draw(found.net, tuple(grey.shape[1:]), count=COLUMNS * ROWS, seed=seed, device=torch.device("cpu"))
        facts = {"steps": found.steps, "kept_step": found.kept, **follow.facts()}
        state = {name: value.detach().cpu() for name, value in found.net.state_dict().items()}
        state[SIGMA] = torch.tensor(found.net.sigma_data, dtype=torch.float64)
        return Trained(state, facts, [*found.notes, *weak(found.area)], [made_up(shown, "Drawn by the model from noise.")])


def weak(area: float) -> list[str]:
    """A warning where the model is hardly better than chance."""
    if not area < WEAK:
        return []
    return [f"The model hardly finds anomalies that were drawn into unseen images: AUROC {area:.2f}; train longer or on more images"]


def taken(weights: dict[str, Tensor], name: str) -> float:
    """A number that is kept among weights, taken out of them.

    Raises:
        ConfigError: it is not there.
    """
    if name not in weights or weights[name].numel() != 1:
        raise ConfigError(f"weights do not fit a diffusion model: {name} is missing")
    return float(weights.pop(name))
