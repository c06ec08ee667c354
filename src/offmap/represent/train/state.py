"""Everything that changes while an encoder is trained, in one file that a run can go on from exactly."""

import copy
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from offmap.core.errors import ConfigError
from offmap.represent.nets.small import SmallNet
from offmap.represent.train.targets import Heads, Statistics

FILE = "checkpoint.safetensors"


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
        keep = min(rate, (1 + self.step) / (10 + self.step))
        own = self.student.state_dict()
        with torch.no_grad():
            for name, value in self.average.state_dict().items():
                if value.is_floating_point():
                    value.lerp_(own[name], 1 - keep)
                else:
                    value.copy_(own[name])

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
        for index, moments in self.optimiser.state_dict()["state"].items():
            yield from ((f"optimiser.{index}.{name}", value) for name, value in moments.items())

    def save(self, folder: Path, identity: dict[str, Any]) -> None:
        """Write the checkpoint; the one before stays until this one is whole.

        Args:
            identity: plan, seed, teacher and pool, which must be the same to go on.
        """
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        numbers = {"step": self.step, "seconds": self.seconds, "lowest": self.lowest, "waits": self.waits, "identity": identity}
        tensors = {name: value.detach().cpu().clone().contiguous() for name, value in self._named()}
        save_file(tensors, folder / f"{FILE}.part", metadata={"run": json.dumps(numbers)})
        os.replace(folder / f"{FILE}.part", folder / FILE)

    def load(self, folder: Path, identity: dict[str, Any]) -> None:
        """Take over a checkpoint.

        Raises:
            ConfigError: it belongs to another plan, seed, teacher or pool, or is damaged.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(folder / FILE, "pt") as file:
                numbers = json.loads((file.metadata() or {})["run"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise ConfigError(f"{folder / FILE} is no readable checkpoint: delete it and start again ({type(error).__name__})") from error
        other = [k for k in identity if numbers["identity"].get(k) != json.loads(json.dumps(identity[k]))]
        if other:
            raise ConfigError(f"{folder / FILE} was made with another {', '.join(other)}: start again in another folder, or use the same")
        self._take(tensors)
        self.step, self.seconds, self.lowest, self.waits = (numbers[k] for k in ("step", "seconds", "lowest", "waits"))

    def _take(self, tensors: dict[str, Tensor]) -> None:
        def part(name: str) -> dict[str, Tensor]:
            return {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}

        for name in ("student", "average", "heads"):
            getattr(self, name).load_state_dict(part(name))
        device = next(self.student.parameters()).device
        self.statistics = Statistics({k: v.to(device) for k, v in part("statistics").items()})
        self.best = {k: v.to(device) for k, v in part("best").items()}
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in part("optimiser").items():
            index, _, name = key.partition(".")
            moments.setdefault(int(index), {})[name] = value
        self.optimiser.load_state_dict({"state": moments, "param_groups": self.optimiser.state_dict()["param_groups"]})
