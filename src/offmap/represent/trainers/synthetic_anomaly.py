"""A network trained from scratch to find what was put into normal images: FPI, PII, NSA, CutPaste, many tasks."""

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
from offmap.represent.layers import normalise
from offmap.represent.nets.synthetic_anomaly import SyntheticAnomalyNet
from offmap.represent.synthetic_anomaly import SyntheticAnomalyEncoder
from offmap.represent.train.followed import Followed
from offmap.represent.train.normal_images import LEAST
from offmap.represent.train.samples import COLUMNS, compared
from offmap.represent.train.synthetic_anomaly import SyntheticAnomalyPlan, train_synthetic_anomaly
from offmap.represent.train.trials import HeldOutTask, maps_of
from offmap.represent.trainers._spatial import Spatial
from offmap.simulate.tasks import SMALLEST, TASKS

WEAK = 0.6
"""Area on the held-out task below which the card warns."""


@dataclass(frozen=True)
class SyntheticAnomaly(SyntheticAnomalyPlan, Spatial):
    """A small U-Net that learns the label of each pixel of altered images (FPI, PII, NSA, CutPaste, many tasks); no anomalies, no labels.

    ``tasks = ["fpi"]`` is FPI, ``["pii"]`` PII, ``["nsa"]`` NSA; several are many tasks; ``["cutpaste", "cutpaste_scar"]`` with
    ``objective = "class"`` is CutPaste in three ways. The checkpoint is the best one on ``held_out_task``.

    Args:
        size: side of the images in pixels, of volumes in voxels.
        channels: 1 or 3; colour becomes grey for one, grey is repeated for three.

    The others are those of ``SyntheticAnomalyPlan`` and of ``Spatial``.
    """

    size: int = 64
    channels: int = 1

    fewest: ClassVar[int] = LEAST
    in_step: ClassVar[bool] = True
    reference: ClassVar[str] = (
        "Tan et al., FPI, MELBA 2022, arXiv 2011.04197; PII, MICCAI 2021, arXiv 2107.02622; Schlueter et al., NSA, ECCV 2022, arXiv "
        "2109.15222; Li et al., CutPaste, CVPR 2021, arXiv 2104.04015; Baugh et al., Many Tasks, MICCAI 2023, arXiv 2307.00899"
    )

    def __post_init__(self) -> None:
        SyntheticAnomalyPlan.__post_init__(self)
        Spatial.__post_init__(self)
        least = max(SMALLEST, self.shape(1).stride)
        if not least <= self.size <= 512 or self.channels not in (1, 3):
            raise ConfigError(f"[train] size = {self.size} must lie in {least}..512, channels = {self.channels} be 1 or 3")

    @property
    def input(self) -> Input:
        return Input(self.size, self.channels, (0.5,) * self.channels, (0.5,) * self.channels, self.axes)

    def open(self, classes: int, state: Mapping[str, Tensor] | None, *, device: torch.device) -> Encoder:
        shape = self.shape(self.channels, self.axes)
        if state is None:
            return SyntheticAnomalyEncoder(SyntheticAnomalyNet(shape), self.size, device=device)
        try:
            return SyntheticAnomalyEncoder.rebuilt({"net": shape.to_json(), "size": self.size}, state, device=device)
        except BundleError as error:
            raise ConfigError(str(error)) from error

    def train(
        self, data: Examples, *, seed: int, device: torch.device, folder: Path | None = None, progress: Event | None = None
    ) -> Trained:
        follow = Followed(self.check_every, self.steps, progress, criterion="held_out_task_auroc")

        seen = normalise(data.images, Input(self.size, self.channels, (0.0,) * self.channels, (1.0,) * self.channels))
        found = train_synthetic_anomaly(
            seen, self, out=folder, seed=seed, device=str(device), resume=True, held_out=data.check, progress=follow
        )
        facts = {"steps": found.steps, "kept_step": found.kept, **follow.facts()}
        weak = (
            f"The network hardly finds what the task {self.held_out_task}, which it was not trained on, does to unseen images: "
            f"AUROC {found.area:.2f}; train on other tasks, longer or on more images"
        )
        state = {name: value.detach().cpu() for name, value in found.net.state_dict().items()}
        sheets = self._sheets(found.net, seen[data.check], seed)
        return Trained(state, facts, [*found.notes, *([weak] if found.area < WEAK else [])], sheets)

    def _sheets(self, net: SyntheticAnomalyNet, held_out: Float[Tensor, "n c *s"], seed: int) -> list[Sheet]:
        """What the held-out task does to images that trained nothing, and what the network says; of a network with a map."""
        if net.shape.objective == "class":
            return []
        trial = HeldOutTask.of(TASKS[self.held_out_task], held_out[:COLUMNS], held_out[:0], seed)
        rows = [part[: min(COLUMNS, len(held_out))] for part in (trial.odd, trial.masks, maps_of(net, trial.odd, torch.device("cpu")))]
        words = (
            f"From above: images that trained nothing, altered by the task {self.held_out_task}, which the network never saw; where they "
            "were altered; and where the network finds it. The third row should be bright where the second one is, and dark elsewhere."
        )
        return [compared([2 * row - 1 for row in rows], words)]
