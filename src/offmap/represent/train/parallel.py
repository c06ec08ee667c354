"""One training in several processes, started by ``torchrun``: each takes its part of every batch, gradients are averaged."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from offmap.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Crew:
    """Which of the processes this one is.

    Args:
        rank: 0 writes and tells.
        size: number of processes; 1 = alone.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def present(cls) -> "Crew":
        """The crew that ``joined`` has put together; this process alone without it."""
        if distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size())
        return cls()

    def part(self, batch: Tensor) -> Tensor:
        """This process's rows of a batch, every ``size``-th."""
        return batch[self.rank :: self.size] if self.size > 1 else batch

    def average(self, net: nn.Module) -> None:
        """Put the mean over all processes in place of each gradient."""
        if self.size > 1:
            for weight in net.parameters():
                if weight.grad is not None:
                    distributed.all_reduce(weight.grad)
                    weight.grad /= self.size

    def mean(self, value: float, device: torch.device) -> float:
        """Mean of a number over all processes."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
        distributed.all_reduce(total)
        return float(total) / self.size

    def agree(self, step: int, device: torch.device) -> None:
        """Make sure that all go on from the same step.

        Raises:
            ConfigError: they do not: their checkpoints are not those of one folder.
        """
        first = self.mean(float(step if self.rank == 0 else 0), device) * self.size
        if self.mean(abs(first - step), device) > 0:
            raise ConfigError(f"the processes go on from different steps ({step} here, {first:.0f} in the first): give all the same folder")


ALONE = Crew()
"""One process."""


@contextmanager
def joined(device: str = "auto") -> Iterator[str]:
    """While inside, trainings of all processes that ``torchrun`` started are one; alone, nothing changes.

    Args:
        device: ``auto``: one card for each process where there are cards, else the CPU.

    Yields:
        The device of this process, for ``train_diffusion``.
    """
    local, size = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    cards = torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
    own = f"cuda:{local}" if cards and size > 1 else ("cuda" if cards else "cpu")
    if size == 1:
        yield own if device == "auto" else device
        return
    if cards:
        torch.cuda.set_device(local)
    distributed.init_process_group("nccl" if cards else "gloo")
    try:
        yield own
    finally:
        distributed.destroy_process_group()
