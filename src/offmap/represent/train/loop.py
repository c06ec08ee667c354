"""Training of the built-in encoder: it learns from a teacher what a large encoder sees, on medical and drawn images.

Distillation of maps and pooled features in the manner of FitNets (Romero et al., ICLR 2015, arXiv:1412.6550), without labels.
"""

import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offmap.core.encoder import Encoder, Input
from offmap.core.errors import ConfigError
from offmap.represent.device import resolve_device
from offmap.represent.hub import HubEncoder, input_from
from offmap.represent.layers import normalise
from offmap.represent.nets.small import SmallNet
from offmap.represent.train.pool import Pool, gather
from offmap.represent.train.randomness import generator_of
from offmap.represent.train.state import FILE, State
from offmap.represent.train.student import export, with_norms
from offmap.represent.train.targets import Heads, measure, teach
from offmap.represent.train.views import views


@dataclass(frozen=True, slots=True)
class Plan:
    """How an encoder is trained; the defaults are those of the shipped one.

    Args:
        steps: optimiser steps; None = until the minutes are over.
        minutes: wall-clock time; None = until the steps are done. With minutes the learning rate follows the clock, and a
            resumed run is not bit for bit that of one sitting.
        batch: views a step.
        rate: highest learning rate of AdamW, reached after ``warmup`` steps, then a cosine to 0.
        weight_decay: of weights (not of biases and norms).
        clip: largest gradient norm.
        average: decay of the running mean of the weights.
        procedural: drawn pictures added to the images.
        held_out: share of the images for the held-out loss.
        check_every: steps between held-out losses and checkpoints.
        patience: checks without a lower held-out loss until the run ends early.
        sample: batches from which the teacher's statistics are taken.
    """

    steps: int | None = None
    minutes: float | None = None
    batch: int = 64
    rate: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.02
    clip: float = 3.0
    average: float = 0.995
    procedural: int = 2850
    held_out: float = 0.05
    check_every: int = 50
    patience: int = 20
    sample: int = 16

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise ConfigError("give steps or minutes: how long the encoder is to be trained")
        for key in ("steps", "minutes", "batch", "rate", "warmup", "clip", "check_every", "patience", "sample"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise ConfigError(f"{key} = {value} must be positive")
        if self.batch < 2 or not 0 <= self.average < 1 or not 0 < self.held_out <= 0.5 or self.weight_decay < 0 or self.procedural < 0:
            raise ConfigError("batch must be 2 or more, average in [0, 1), held_out in (0, 0.5], weight_decay and procedural not negative")

    def done(self, step: int, seconds: float) -> float:
        """Share of the run that is over, in [0, 1]."""
        shares = (step / self.steps if self.steps else 0.0, seconds / (60 * self.minutes) if self.minutes else 0.0)
        return min(1.0, max(shares))

    def rate_at(self, step: int, seconds: float) -> float:
        """Learning rate of the next step."""
        return self.rate * min(1.0, (step + 1) / self.warmup) * 0.5 * (1 + math.cos(math.pi * self.done(step, seconds)))


@dataclass(frozen=True, slots=True)
class Progress:
    """One step: its loss, the last held-out loss (NaN before the first), and the share of the run that is over."""

    step: int
    loss: float
    held_out: float
    done: float


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run gave.

    Args:
        folder: holds ``model.safetensors`` and ``config.json``; ``--encoder builtin:FOLDER`` uses it.
        steps: taken.
        held_out: lowest held-out loss, that of the exported weights.
        images: in the training part.
        skipped: files that could not be read.
    """

    folder: Path
    steps: int
    held_out: float
    images: int
    skipped: int


def train(
    data: Sequence[Path],
    out: Path,
    *,
    teacher: str,
    plan: Plan,
    network: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Trained:
    """Train an encoder and write it in the form of the shipped one, with ``log.jsonl`` and a checkpoint beside it.

    Args:
        data: image files and folders (PNG, JPEG, TIFF, BMP), without labels.
        teacher: folder or name of a hub encoder.
        network: a ``config.json`` of another architecture or input size; that of the shipped encoder when None.
        seed: of drawing, splitting, initialising, batches and views.
        resume: go on from the checkpoint in ``out`` if there is one.
        progress: told of each step.

    Raises:
        ConfigError: a value out of range, a path that is not there, or a checkpoint of another run.
        NotAvailableError: the teacher, transformers or the device is missing.
        DataError: fewer than two images.
    """
    place = resolve_device(device)
    config = _network(network)
    master = HubEncoder.open(teacher, device=place)
    pool = gather(data, procedural=plan.procedural, held_out=plan.held_out, seed=seed)
    run = _Run(plan, seed, pool, master, input_from(config["input"]), place)
    identity = {"plan": asdict(plan), "seed": seed, "teacher": master.sha256, "images": len(pool.train), "network": config}
    state = run.begin(config)
    if resume and (out / FILE).is_file():
        state.load(out, identity)
    run.go(state, out, identity, progress)
    export(state.exported(), config, out)
    return Trained(out, state.step, state.lowest, len(pool.train), pool.skipped)


def _network(path: Path | None) -> dict[str, Any]:
    shipped = resources.files("offmap.represent") / "weights" / "offmap_encoder.json"
    try:
        config: dict[str, Any] = json.loads(shipped.read_text() if path is None else path.read_text())
        SmallNet.from_config(config)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is no readable config.json of an encoder: {error}") from error
    return config


@dataclass(frozen=True, slots=True)
class _Run:
    plan: Plan
    seed: int
    pool: Pool
    teacher: Encoder
    input: Input
    device: torch.device

    def _generator(self, step: int) -> torch.Generator:
        """Randomness of one step; it depends on nothing that came before, so that a resumed run draws the same."""
        return generator_of(self.seed, step)

    def _batch(self, step: int) -> Tensor:
        rng = self._generator(step)
        rows = torch.randint(len(self.pool.train), (self.plan.batch,), generator=rng)
        return views(self.pool.train[rows].to(self.device), self.input.size, rng)

    def _held_out(self) -> Iterator[Tensor]:
        for index, part in enumerate(self.pool.held_out[:512].split(self.plan.batch)):
            yield views(part.to(self.device), self.input.size, self._generator((1 << 31) + index))

    def begin(self, config: dict[str, Any]) -> State:
        """A fresh state: weights drawn, statistics of the teacher measured."""
        rng = self._generator((1 << 31) - 1)
        student = with_norms(SmallNet.from_config(config), rng)
        example = teach(self.teacher, self._batch(0)[:2])
        heads = Heads(student, example, self.teacher.input.size, rng)
        student, heads = student.to(self.device, memory_format=torch.channels_last), heads.to(self.device)  # type: ignore[call-overload]
        statistics = measure(self.teacher, (self._batch((1 << 30) + i) for i in range(self.plan.sample)))
        parameters = [*student.parameters(), *heads.parameters()]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.plan.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return State(student, copy.deepcopy(student), heads, torch.optim.AdamW(groups, lr=self.plan.rate), statistics)

    def loss(self, net: SmallNet, state: State, pixels: Tensor) -> Tensor:
        """Of one batch of views."""
        with torch.no_grad():
            taught = teach(self.teacher, pixels)
        seen = normalise(pixels, self.input).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            return state.heads.loss(net(seen), taught, state.statistics)

    def step(self, state: State) -> float:
        """One optimiser step; its loss."""
        for group in state.optimiser.param_groups:
            group["lr"] = self.plan.rate_at(state.step, state.seconds)
        state.student.train()
        state.optimiser.zero_grad()
        loss = self.loss(state.student, state, self._batch(state.step))
        loss.backward()
        parameters = [p for group in state.optimiser.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self.plan.clip)
        state.optimiser.step()
        state.follow(self.plan.average)
        state.step += 1
        return float(loss.detach())

    def check(self, state: State) -> float:
        """Held-out loss of the running mean, which is kept when it is the lowest."""
        state.average.eval()
        with torch.no_grad():
            found = [(float(self.loss(state.average, state, p)), len(p)) for p in self._held_out()]
        value = sum(v * n for v, n in found) / sum(n for _, n in found)
        if value < state.lowest:
            state.lowest, state.waits = value, 0
            state.keep_best()
        else:
            state.waits += 1
        return value

    def go(self, state: State, out: Path, identity: dict[str, Any], progress: Callable[[Progress], None] | None) -> None:
        """Steps until the plan is done or the held-out loss has stopped falling."""
        out.mkdir(parents=True, exist_ok=True)
        before, start, held_out = state.seconds, time.monotonic(), math.nan
        while self.plan.done(state.step, state.seconds) < 1 and state.waits < self.plan.patience:
            loss = self.step(state)
            state.seconds = before + time.monotonic() - start
            done = self.plan.done(state.step, state.seconds)
            if state.step % self.plan.check_every == 0 or done >= 1:
                held_out = self.check(state)
                state.save(out, identity)
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps({"step": state.step, "loss": loss, "held_out": None if math.isnan(held_out) else held_out}) + "\n")
            if progress is not None:
                progress(Progress(state.step, loss, held_out, done))
