"""The contract of a trainer: in-distribution images become the network that a gate is made with."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from offmap.core.component import Component
from offmap.core.encoder import Encoder, Input
from offmap.core.errors import ConfigError

Event = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, eq=False)
class Examples:
    """Images to train on, in memory.

    Args:
        images: prepared, in [0, 1]; one channel, or three; two axes of space, or three.
        labels: 0 ... K-1 for each, every class at least once on either side; None without classes.
        check: rows that choose the checkpoint and train nothing; no patient and no copy is on both sides.
    """

    images: Float[Tensor, "n c *s"]
    labels: Int64[Tensor, " n"] | None
    check: Int64[Tensor, " m"]


@dataclass(frozen=True)
class Sheet:
    """A picture by which a person judges a model.

    Args:
        picture: a PNG as ``data:`` address.
        caption: what is what, and what a good one looks like.
        made_up: the model made it of random numbers alone. Only such a picture may be kept in a gate: others show training images.
    """

    picture: str
    caption: str
    made_up: bool


@dataclass(frozen=True, eq=False)
class Trained:
    """What a training gave.

    Args:
        state: named tensors, on the CPU, from which ``Trainer.open`` builds the network again.
        facts: JSON values for the gate's card, such as ``epochs``, ``kept_epoch``, ``validation_auroc``; no times.
        warnings: what the person who fits should know, in sentences.
        sheets: pictures, where they help to judge the model.
    """

    state: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    warnings: Sequence[str] = ()
    sheets: Sequence[Sheet] = ()


@dataclass(frozen=True)
class Trainer(Component, ABC):
    """Trains the encoder of one gate; a file of ``represent/trainers``, named in a recipe as ``[encoder] spec = "train:<file>"``.

    Its fields are the recipe's table ``[train]``. The weights are kept in the gate, whatever their size.

    Args:
        share: of the images that trains (with ``held_out`` of it for the checkpoint); the others make the gate.
        held_out: share of the training images that chooses the checkpoint.
    """

    share: float = 0.6
    held_out: float = 0.15

    labelled: ClassVar[bool] = False
    """Whether it needs a label for each image."""

    fewest: ClassVar[int] = 5
    """Patients (clusters of copies, or single images) that it needs, of each class where it is labelled; 3 or more."""

    in_step: ClassVar[bool] = False
    """Whether several processes of ``torchrun`` can train it together, each with its part of every batch."""

    def __post_init__(self) -> None:
        if not 0.1 <= self.share <= 0.9 or not 0 < self.held_out <= 0.5:
            raise ConfigError(f"[train] share = {self.share} must lie in 0.1..0.9, held_out = {self.held_out} above 0 and up to 0.5")

    @property
    @abstractmethod
    def input(self) -> Input:
        """What the network will see; known before an image is read."""

    def over_volumes(self) -> "Trainer":
        """The same for volumes, ``(C, D, H, W)``.

        Raises:
            ConfigError: its network sees images only; the message says why.
        """
        raise ConfigError(
            f"--volumes does not go with train:{self.method()}{self.images_only}. Leave --volumes out, and each slice is an item; or take "
            "a recipe whose network sees volumes (vae, dae, gan, diffusion, latent-diffusion, synthetic-anomaly)"
        )

    @property
    def images_only(self) -> str:
        """Why the network sees no volumes, to follow the trainer's name in a message."""
        return ", whose network sees images of two axes"

    @abstractmethod
    def open(self, classes: int, state: Mapping[str, Tensor] | None, *, device: torch.device) -> Encoder:
        """The network with these weights, or with fresh ones: it says which signals there will be.

        Args:
            classes: K; 0 without labels.

        Raises:
            ConfigError: the weights do not fit.
        """

    @abstractmethod
    def train(
        self, data: Examples, *, seed: int, device: torch.device, folder: Path | None = None, progress: Event | None = None
    ) -> Trained:
        """Train; the same seed gives the same weights on the same machine.

        Args:
            folder: for checkpoints; from what is found there the training goes on, and gives what one sitting would have given.
                Nothing is written where there is none.
            progress: told ``{"event": "train", "done": 3, "total": 20, ...}`` at least once an epoch; of a training that goes on, first
                of the epochs before.

        Raises:
            ConfigError: the images cannot be trained on with these settings, the training went astray, a checkpoint cannot be written,
                or what is in the folder belongs to another training.
        """
