"""A residual network with four exits, trained from scratch on labelled images; for the method mecam."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from offmap.core.encoder import Encoder, Input
from offmap.core.errors import ConfigError
from offmap.core.trainer import Event, Examples, Trained, Trainer
from offmap.represent.nets.multi_exit import DEPTHS, MultiExitResNet
from offmap.represent.train.followed import Followed
from offmap.represent.train.judged import Judged
from offmap.represent.train.multi_exit import ExitPlan, train_multi_exit, with_own_exits

WEAK = 0.7
"""Validation AUROC below which the card warns."""


@dataclass(frozen=True)
class MultiExit(ExitPlan, Trainer):
    """ResNet-18 or 50 with an exit after each of four stages; a classifier for every other method too.

    Args:
        depth: 18 or 50.
        size: side of its input in pixels, 32 to 512.
        channels: 1 or 3; grey images are repeated.
        width: channels of the first stage, doubled at each, 1 to 128.
        share: of the images that trains, with ``held_out`` of it for the checkpoint, 0.1 to 0.9; the others make the gate.
        held_out: share of the training images that chooses the epoch, up to 0.5. The paper's code chooses on the test images.
        epochs: passes over the training part.
        batch: images a step.
        rate, last_rate: learning rate of SGD, along a cosine from the one to the other.
        momentum, weight_decay: of SGD.
        exits: weight of each exit's cross-entropy, shallow to deep.
        balanced: draw images so that classes come equally often.
        precision: of the passes while training, ``float32`` or ``bfloat16``, which halves the time on processors and cards that have it
            in hardware and is slow on others.
        augment: ``light`` (shifts and flips) or ``strong`` (also turns, scale, shear, tone and a cut-out square, as in the paper).
    """

    depth: int = 18
    size: int = 96
    channels: int = 3
    width: int = 64

    labelled: ClassVar[bool] = True
    reference: ClassVar[str] = (
        "Chen et al., Unsupervised Out-of-Distribution Detection in Medical Imaging Using Multi-Exit Class Activation Maps and Feature "
        "Masking, 2025, arXiv 2505.08604"
    )

    def __post_init__(self) -> None:
        ExitPlan.__post_init__(self)
        Trainer.__post_init__(self)
        if self.depth not in DEPTHS or not 32 <= self.size <= 512 or self.channels not in (1, 3) or not 1 <= self.width <= 128:
            raise ConfigError(
                f"[train] depth = {self.depth} must be 18 or 50, size = {self.size} lie in 32..512, channels = {self.channels} be 1 or 3, "
                f"width = {self.width} lie in 1..128"
            )

    @property
    def input(self) -> Input:
        return Input(self.size, self.channels, (0.0,) * self.channels, (1.0,) * self.channels)

    def open(self, classes: int, state: Mapping[str, Tensor] | None, *, device: torch.device) -> Encoder:
        net = MultiExitResNet(max(classes, 2), depth=self.depth, channels=self.channels, width=self.width)
        if state is not None:
            try:
                net.load_state_dict(dict(state))
            except RuntimeError as error:
                raise ConfigError(f"weights do not fit a multi-exit network: {str(error)[:300]}") from error
        return with_own_exits(net.eval(), self.input, device=str(device))

    def train(
        self, data: Examples, *, seed: int, device: torch.device, folder: Path | None = None, progress: Event | None = None
    ) -> Trained:
        if data.labels is None:
            raise ConfigError("train:multi_exit needs a label for each image")
        follow = Followed(1, self.epochs, progress, criterion="validation_auroc")

        def tell(epoch: int, loss: float, area: float) -> None:
            if not math.isfinite(loss):
                raise ConfigError(f"training went astray: the loss of epoch {epoch + 1} is {loss}; lower --set train.rate={self.rate}")
            follow(Judged(epoch + 1, loss, math.nan, area, (epoch + 1) / self.epochs))

        found = train_multi_exit(
            data.images,
            data.labels,
            self,
            spec=self.input,
            depth=self.depth,
            width=self.width,
            out=folder,
            seed=seed,
            device=str(device),
            resume=True,
            progress=tell,
            held_out=data.check,
        )
        best = found.areas[found.epoch]
        facts = {"epochs": self.epochs, "kept_epoch": found.epoch + 1, **follow.facts()}
        weak = f"The network hardly learnt its classes: validation AUROC {best:.2f}; more images, more epochs or other labels are needed"
        return Trained({k: v.detach().cpu() for k, v in found.net.state_dict().items()}, facts, [weak] if best < WEAK else [])
