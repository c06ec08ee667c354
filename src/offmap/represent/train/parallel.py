"""One training in several processes, started by ``torchrun``: each takes its part of every batch, gradients are averaged."""

import gc
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed

from offmap.core.errors import ConfigError, NotAvailableError

LONGEST = timedelta(minutes=30)
"""That a process waits for another one."""

SETTLING = 0.5
"""Seconds that the threads of a group have to end."""


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

    def normal(self, shape: Sequence[int], rng: torch.Generator) -> Tensor:
        """This process's rows of the noise that is drawn for the whole batch; ``shape`` is that of the part."""
        return self.part(torch.randn(shape[0] * self.size, *shape[1:], generator=rng))

    def average(self, weights: Iterable[Tensor]) -> None:
        """Put the mean over all processes in place of each gradient."""
        slopes = [weight.grad for weight in weights if weight.grad is not None]
        if self.size == 1 or not slopes:
            return
        means = self.shared(torch.cat([slope.reshape(-1) for slope in slopes])).split([slope.numel() for slope in slopes])
        for slope, mean in zip(slopes, means, strict=True):
            slope.copy_(mean.view(slope.shape))

    def shared(self, value: Tensor) -> Tensor:
        """Mean of a tensor over all processes, without gradient.

        Raises:
            NotAvailableError: another process has ended.
        """
        if self.size == 1:
            return value
        total = value.detach().clone(memory_format=torch.contiguous_format)
        try:
            distributed.all_reduce(total)
        except RuntimeError as error:
            raise NotAvailableError(f"another of the {self.size} processes that train together has ended or does not answer") from error
        return total / self.size

    def mean(self, value: float, device: torch.device) -> float:
        """Mean of a number over all processes."""
        kind = torch.float64 if device.type != "mps" else torch.float32
        return value if self.size == 1 else float(self.shared(torch.tensor(value, dtype=kind, device=device)))

    def require_share(self, batch: int, minutes: float | None) -> None:
        """Refuse what several processes cannot do in step.

        Raises:
            ConfigError: a batch that cannot be divided, or a schedule that follows the clock.
        """
        if self.size > 1 and (minutes is not None or batch % self.size):
            raise ConfigError(
                f"{self.size} processes train in step: give steps and no minutes, and a batch that they can share (batch = {batch})"
            )

    def agree(self, step: int, device: torch.device) -> None:
        """Wait for all, and make sure that they go on from the same step.

        Raises:
            ConfigError: they do not: their checkpoints are not those of one folder.
        """
        first = self.mean(float(step if self.rank == 0 else 0), device) * self.size
        if self.mean(abs(first - step), device) > 0:
            raise ConfigError(f"the processes go on from different steps ({step} here, {first:.0f} in the first): give all the same folder")

    def leave(self, device: torch.device) -> None:
        """The training is over: the first process goes on alone.

        Raises:
            ShareDoneError: in the others.
        """
        if self.size > 1:
            self.agree(0, device)
            _part()
        if self.rank > 0:
            raise ShareDoneError(0)


class ShareDoneError(SystemExit):
    """This process has done its share of a training and is not needed any more; not caught, it ends the process, exit code 0."""


ALONE = Crew()
"""One process."""


@contextmanager
def joined(device: str = "auto") -> Iterator[str]:
    """While inside, trainings of all processes that ``torchrun`` started are one; alone, nothing changes.

    Args:
        device: ``auto``: one card for each process where there are cards, else the CPU.

    Yields:
        The device of this process, for ``offmap.fit`` or a function that trains.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield device
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    cards = torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
    if cards and local >= torch.cuda.device_count():
        raise NotAvailableError(f"process {local} has no card: there are {torch.cuda.device_count()}; start fewer, or take --device cpu")
    if cards:
        torch.cuda.set_device(local)
    distributed.init_process_group("nccl" if cards else "gloo", timeout=LONGEST)
    try:
        yield f"cuda:{local}" if cards else "cpu"
    finally:
        if distributed.is_initialized():
            _part()


def _part() -> None:
    """End the group, and give its threads the time to let go of the last tensors: a process that ends before is aborted."""
    distributed.destroy_process_group()
    gc.collect()
    time.sleep(SETTLING)
