"""A pixel diffusion model, trained from scratch on normal images; for the methods msma, diffpath, scoped and others of its kind."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from offmap.core.encoder import Encoder, Input
from offmap.core.errors import BundleError, ConfigError
from offmap.core.trainer import Event, Examples, Trained, Trainer
from offmap.represent.diffusion import DiffusionEncoder
from offmap.represent.layers import normalise
from offmap.represent.nets.unet import EDMDenoiser, UNetShape
from offmap.represent.train.diffusion import LEAST, DiffusionPlan, train_diffusion
from offmap.represent.train.judged import Judged

WEAK = 0.6
"""AUROC of drawn anomalies below which the card warns."""

SIGMA = "sigma_data"


@dataclass(frozen=True)
class Diffusion(DiffusionPlan, Trainer):
    """A small U-Net with the preconditioning of Karras et al.; no labels.

    Args:
        channels: 1 or 3; colour becomes grey for one, grey is repeated for three.

    The others are those of ``DiffusionPlan`` and of ``Trainer``.
    """

    channels: int = 1

    fewest: ClassVar[int] = LEAST
    reference: ClassVar[str] = (
        "Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, NeurIPS 2022, arXiv 2206.00364"
    )

    def __post_init__(self) -> None:
        DiffusionPlan.__post_init__(self)
        Trainer.__post_init__(self)
        if not 8 <= self.size <= 512 or self.channels not in (1, 3):
            raise ConfigError(f"[train] size = {self.size} must lie in 8..512, channels = {self.channels} be 1 or 3")

    @property
    def input(self) -> Input:
        return Input(self.size, self.channels, (0.5,) * self.channels, (0.5,) * self.channels)

    @property
    def _shape(self) -> UNetShape:
        return UNetShape(self.channels, 2, self.widths, self.blocks, fold=self.fold)

    def open(self, classes: int, state: Mapping[str, Tensor] | None, *, device: torch.device) -> Encoder:
        if state is None:
            return DiffusionEncoder(EDMDenoiser(self._shape, 0.5), self.size, device=device)
        weights = dict(state)
        if SIGMA not in weights or weights[SIGMA].numel() != 1:
            raise ConfigError(f"weights do not fit a diffusion model: {SIGMA} is missing")
        config = {"net": self._shape.to_json(), SIGMA: float(weights.pop(SIGMA)), "size": self.size}
        try:
            return DiffusionEncoder.rebuilt(config, weights, device=device)
        except BundleError as error:
            raise ConfigError(str(error)) from error

    def train(self, data: Examples, *, seed: int, device: torch.device, progress: Event | None = None) -> Trained:
        checks: list[Judged] = []

        def tell(now: Judged) -> None:
            if now.step % self.check_every and now.done < 1:
                return
            checks.append(now)
            if progress is not None:
                values: dict[str, Any] = {"loss": now.loss, "held_out_loss": now.held_out, "drawn_anomalies_auroc": now.area}
                told = {k: round(v, 4) for k, v in values.items() if math.isfinite(v)}
                progress({"event": "train", "done": now.step, "total": self.steps, **told})

        grey = normalise(data.images, Input(self.size, self.channels, (0.0,) * self.channels, (1.0,) * self.channels))
        found = train_diffusion(grey, self, seed=seed, device=str(device), held_out=data.check, progress=tell)
        facts = {
            "steps": found.steps,
            "kept_step": found.kept,
            "drawn_anomalies_auroc": [round(now.area, 4) for now in checks if math.isfinite(now.area)],
            "held_out_loss": [round(now.held_out, 4) for now in checks if math.isfinite(now.held_out)],
        }
        weak = (
            f"The model hardly finds anomalies that were drawn into unseen images: AUROC {found.area:.2f}; train longer or on more images"
        )
        state = {name: value.detach().cpu() for name, value in found.net.state_dict().items()}
        state[SIGMA] = torch.tensor(found.net.sigma_data, dtype=torch.float64)
        return Trained(state, facts, [*found.notes, *([weak] if found.area < WEAK else [])])
