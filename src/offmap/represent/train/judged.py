"""Training whose checkpoints are judged without labels: steps, running mean, the best so far, exact resume, and what ends it early."""

import copy
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from offmap.core.errors import ConfigError
from offmap.represent.train import checkpoint, log
from offmap.represent.train.checkpoint import under
from offmap.represent.train.parallel import Crew
from offmap.represent.train.randomness import generator_of
from offmap.represent.train.shared_norm import share_norms

N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class Schedule:
    """How long, how fast and how exactly a network is trained, and when it is judged.

    Args:
        steps: optimiser steps; None = until the minutes are over.
        minutes: wall-clock time; None = until the steps are done. With minutes the learning rate follows the clock, and a
            resumed run is not bit for bit that of one sitting.
        batch: images a step.
        rate: highest learning rate of AdamW, reached after ``warmup`` steps, then a cosine to 0.
        clip: largest gradient norm.
        average: decay of the running mean of the weights, which is what scores.
        precision: of forward and backward passes; ``bfloat16`` is more than twice as fast on processors and cards that have it
            in hardware and slow on others. Weights and their steps are in float32 in any case.
        held_out: share of the images on which checkpoints are judged.
        check_every: steps between checkpoints.
        patience: checkpoints in a row that are worse than the best one until the run ends early.
        margin: how much smaller than the best an area may be not to count as worse; the latest such checkpoint is kept.
    """

    steps: int | None = 4000
    minutes: float | None = None
    batch: int = 32
    rate: float = 1e-3
    warmup: int = 100
    clip: float = 1.0
    average: float = 0.995
    precision: Literal["float32", "bfloat16"] = "float32"
    held_out: float = 0.1
    check_every: int = 250
    patience: int = 8
    margin: float = 0.01

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise ConfigError("give steps or minutes: how long the network is to be trained")
        for key in ("steps", "minutes", "batch", "rate", "warmup", "clip", "check_every", "patience"):
            value = getattr(self, key)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{key} = {value} must be positive")
        if not 0 <= self.average < 1 or not 0 < self.held_out <= 0.5 or not 0 <= self.margin < 0.5:
            raise ConfigError(f"average = {self.average} [0, 1), held_out = {self.held_out} (0, 0.5], margin = {self.margin} [0, 0.5)")
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(f"precision = {self.precision!r} must be 'float32' or 'bfloat16'")

    def done(self, step: int, seconds: float) -> float:
        """Share of the run that is over, in [0, 1]."""
        shares = (step / self.steps if self.steps else 0.0, seconds / (60 * self.minutes) if self.minutes else 0.0)
        return min(1.0, max(shares))

    def rate_at(self, step: int, seconds: float) -> float:
        """Learning rate of the next step."""
        return self.rate * min(1.0, (step + 1) / self.warmup) * 0.5 * (1 + math.cos(math.pi * self.done(step, seconds)))


@dataclass(frozen=True, slots=True)
class Judged:
    """One step: its loss, the last held-out loss and area (NaN before the first checkpoint), and the share of the run that is over."""

    step: int
    loss: float
    held_out: float
    area: float
    done: float

    def to_json(self) -> dict[str, Any]:
        """JSON values; None for NaN."""
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Judged":
        """The inverse of ``to_json``."""
        numbers = {k: math.nan if values.get(k) is None else float(values[k]) for k in ("loss", "held_out", "area", "done")}
        return cls(int(values["step"]), **numbers)


Watch = Callable[[Judged], None]


@dataclass(slots=True)
class State(Generic[N]):
    """All that changes in a run.

    Args:
        net: takes the steps.
        average: running mean of its weights, which is judged.
        optimiser: of ``net``.
        best: weights of the checkpoint that is kept; empty before the first.
        step: finished steps.
        seconds: over all sittings.
        highest: area of the best checkpoint.
        best_area: area of the one that is kept.
        kept: its step.
        waits: checkpoints since then.
        held_out, area: of the last checkpoint; NaN before the first.
    """

    net: N
    average: N
    optimiser: torch.optim.AdamW
    best: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    seconds: float = 0.0
    highest: float = -math.inf
    best_area: float = math.nan
    kept: int = 0
    waits: int = 0
    held_out: float = math.nan
    area: float = math.nan

    @classmethod
    def fresh(cls, net: N, schedule: Schedule) -> "State[N]":
        """Before the first step."""
        share_norms(net)
        return cls(net, copy.deepcopy(net), torch.optim.AdamW(net.parameters(), lr=schedule.rate, weight_decay=0.0))

    def save(self, folder: Path, identity: dict[str, Any]) -> None:
        """Write the checkpoint."""
        tensors = {f"{part}.{k}": v for part in ("net", "average") for k, v in getattr(self, part).state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        tensors |= {f"optimiser.{k}": v for k, v in checkpoint.moments_of(self.optimiser).items()}
        checkpoint.write(folder, tensors, {name: getattr(self, name) for name in _NUMBERS}, identity)

    def load(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Go on from what ``save`` wrote."""
        self.net.load_state_dict(under("net", tensors))
        self.average.load_state_dict(under("average", tensors))
        self.best = under("best", tensors)
        checkpoint.take_moments(self.optimiser, under("optimiser", tensors))
        for name in _NUMBERS:
            setattr(self, name, numbers[name])

    def judge(self, area: float, margin: float) -> None:
        """Keep the average unless its area is worse than the best by more than the margin."""
        self.highest = max(self.highest, area)
        if area < self.highest - margin:
            self.waits += 1
            return
        self.waits, self.kept, self.best_area = 0, self.step, area
        self.best = {name: value.detach().cpu().clone() for name, value in self.average.state_dict().items()}

    def exported(self) -> N:
        """The checkpoint that is kept, on the CPU, in eval mode."""
        return _still(self.average, self.best)

    def latest(self) -> N:
        """The running mean as it is now, on the CPU, in eval mode."""
        return _still(self.average, {})


_NUMBERS = ("step", "seconds", "highest", "best_area", "kept", "waits", "held_out", "area")


def _still(average: N, weights: dict[str, Tensor]) -> N:
    net = copy.deepcopy(average).cpu()
    net.load_state_dict(weights or net.state_dict())
    net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    net.eval().requires_grad_(False)
    return net


class JudgedRun(ABC, Generic[N]):
    """One training: what a step is, and how a checkpoint is judged.

    Attributes:
        plan: when it ends.
        seed: of all that is drawn.
        criterion: what the area is of, in words that go before "were seen best at step 500".
    """

    __slots__ = ()

    plan: Schedule
    seed: int
    criterion: str

    @abstractmethod
    def step(self, state: State[N]) -> float:
        """One optimiser step; its loss, NaN where no step could be made.

        What it draws depends on the seed and the number of the step alone, so that a resumed run draws the same.
        """

    @abstractmethod
    def judged(self, average: N) -> tuple[float, float]:
        """Held-out loss and area of the running mean, without gradients."""

    def generator(self, step: int) -> torch.Generator:
        """Randomness of one step; it depends on nothing that came before."""
        return generator_of(self.seed, step)

    def check(self, state: State[N]) -> tuple[float, float]:
        """Held-out loss and area of the running mean, which is kept when the area has not fallen."""
        state.average.eval()
        with torch.no_grad():
            found, device = self.judged(state.average), next(state.average.parameters()).device
        held_out, area = (Crew.present().mean(value, device) for value in found)
        state.judge(area, self.plan.margin)
        return held_out, area

    def sit(self, state: State[N], out: Path | None, identity: dict[str, Any], *, resume: bool, progress: Watch | None) -> list[str]:
        """One sitting, from the checkpoint in ``out`` on where ``resume`` and there is one; otherwise as ``go``.

        Args:
            progress: told of the steps of earlier sittings first, as far as the log has them.
        """
        crew = Crew.present()
        crew.require_share(self.plan.batch, self.plan.minutes)
        if out is not None and resume and (out / checkpoint.FILE).is_file():
            state.load(*checkpoint.read(out, identity))
        crew.agree(state.step, next(state.net.parameters()).device)
        if out is not None and crew.rank == 0:
            for values in log.upto(out, state.step, cut=True):
                if progress is not None:
                    progress(Judged.from_json(values))
        return self.go(state, out, identity, progress)

    def go(self, state: State[N], out: Path | None, identity: dict[str, Any], progress: Watch | None) -> list[str]:
        """Steps until the plan is done, the area stays below the best, or the loss is not finite; says why it ended early.

        Args:
            out: folder for the checkpoint and ``log.jsonl``; nothing is written where there is none.
            identity: what must be the same to go on from the checkpoint.
            progress: told of each step.

        Raises:
            ConfigError: the loss is not finite before the first checkpoint, or a checkpoint cannot be written.
        """
        before, start = state.seconds, time.monotonic()
        first = Crew.present().rank == 0
        while self.plan.done(state.step, state.seconds) < 1 and state.waits < self.plan.patience:
            loss = self.step(state)
            if math.isnan(loss):
                return [_diverged(state, self.plan)]
            state.seconds = before + time.monotonic() - start
            done = self.plan.done(state.step, state.seconds)
            due = state.step % self.plan.check_every == 0 or done >= 1
            if due:
                state.held_out, state.area = self.check(state)
            now = Judged(state.step, loss, state.held_out, state.area, done)
            if out is not None and first:
                log.add(out, now.to_json(), keep=due)
                if due:
                    state.save(out, identity)
            if progress is not None and first:
                progress(now)
        if state.waits < self.plan.patience:
            return []
        return [f"ended at step {state.step}: {self.criterion} were seen best at step {state.kept}, whose weights are kept"]


class DescentRun(JudgedRun[N]):
    """A training whose every step goes down one loss; gradients are the mean over all processes of ``torchrun``."""

    __slots__ = ()

    @abstractmethod
    def step_loss(self, net: N, step: int) -> Tensor:
        """Of the step's own batch; it depends on the seed and the step alone."""

    def step(self, state: State[N]) -> float:
        """One optimiser step; its loss, NaN where no step could be made."""
        crew = Crew.present()
        for group in state.optimiser.param_groups:
            group["lr"] = self.plan.rate_at(state.step, state.seconds)
        state.net.train()
        state.optimiser.zero_grad()
        loss = self.step_loss(state.net, state.step)
        value = crew.mean(float(loss.detach()), loss.device)
        if not math.isfinite(value):
            return math.nan
        loss.backward()
        crew.average(state.net.parameters())
        size = torch.nn.utils.clip_grad_norm_(state.net.parameters(), self.plan.clip)
        if not bool(torch.isfinite(size)):
            return math.nan
        state.optimiser.step()
        state.step += 1
        checkpoint.follow(state.average, state.net, self.plan.average, state.step)
        return value


def _diverged(state: State[N], plan: Schedule) -> str:
    what = f"the loss or its gradient was not finite at step {state.step + 1}"
    if not state.best:
        raise ConfigError(f"{what}, before the first checkpoint: take a lower rate than {plan.rate}, or precision = 'float32'")
    return f"ended early: {what}; the weights are those of step {state.kept}"
