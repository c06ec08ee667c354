"""Everything that changes while an encoder is trained, in one file that a run can go on from exactly."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from offmap.represent.nets.small import SmallNet
from offmap.represent.train import checkpoint
from offmap.represent.train.checkpoint import FILE, under
from offmap.represent.train.targets import Heads, Statistics

__all__ = ["FILE", "State"]


@dataclass(slots=True)
class State:
    """The changing parts of a run.

    Args:
        student: the network in training.
        average: its running mean, which is what is exported.
        heads: predict the teacher.
        optimiser: AdamW over student and heads.
        statistics: of the teacher.
        best: weights of the average at the lowest held-out loss.
        step: finished steps.
        seconds: spent so far, over all sittings.
        lowest: lowest held-out loss.
        waits: checks since it fell.
    """

    student: SmallNet
    average: SmallNet
    heads: Heads
    optimiser: torch.optim.AdamW
    statistics: Statistics
    best: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    seconds: float = 0.0
    lowest: float = math.inf
    waits: int = 0

    def follow(self, rate: float) -> None:
        """Move the running mean towards the student; early on faster, so that it forgets where it began."""
        checkpoint.follow(self.average, self.student, rate, self.step)

    def keep_best(self) -> None:
        """Remember the average as it is."""
        self.best = {name: value.detach().clone() for name, value in self.average.state_dict().items()}

    def exported(self) -> SmallNet:
        """The average at its best, on the CPU, in eval mode."""
        net = copy.deepcopy(self.average)
        net.load_state_dict(self.best or net.state_dict())
        return net.cpu().eval()

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        for part in ("student", "average", "heads"):
            module: nn.Module = getattr(self, part)
            yield from ((f"{part}.{name}", value) for name, value in module.state_dict().items())
        yield from ((f"statistics.{name}", value) for name, value in self.statistics.tensors.items())
        yield from ((f"best.{name}", value) for name, value in self.best.items())
        yield from ((f"optimiser.{name}", value) for name, value in checkpoint.moments_of(self.optimiser).items())

    def save(self, folder: Path, identity: dict[str, Any]) -> None:
        """Write the checkpoint; the one before stays until this one is whole.

        Args:
            identity: plan, seed, teacher and pool, which must be the same to go on.

        Raises:
            ConfigError: it cannot be written.
        """
        numbers = {"step": self.step, "seconds": self.seconds, "lowest": self.lowest, "waits": self.waits}
        checkpoint.write(folder, dict(self._named()), numbers, identity)

    def load(self, folder: Path, identity: dict[str, Any]) -> None:
        """Take over a checkpoint.

        Raises:
            ConfigError: it belongs to another plan, seed, teacher or pool, or is damaged.
        """
        tensors, numbers = checkpoint.read(folder, identity)
        self._take(tensors)
        self.step, self.seconds, self.lowest, self.waits = (numbers[k] for k in ("step", "seconds", "lowest", "waits"))

    def _take(self, tensors: dict[str, Tensor]) -> None:
        for name in ("student", "average", "heads"):
            getattr(self, name).load_state_dict(under(name, tensors))
        device = next(self.student.parameters()).device
        self.statistics = Statistics({k: v.to(device) for k, v in under("statistics", tensors).items()})
        self.best = {k: v.to(device) for k, v in under("best", tensors).items()}
        checkpoint.take_moments(self.optimiser, under("optimiser", tensors))
