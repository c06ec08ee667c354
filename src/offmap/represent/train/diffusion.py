"""Training of a pixel diffusion model on normal images; the checkpoint is chosen without labels, on drawn anomalies.

Loss, preconditioning and noise levels of Karras et al., NeurIPS 2022, 2206.00364, table 1 (column "Ours").
"""

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from offmap.core.errors import ConfigError, DataError
from offmap.represent.device import resolve_device
from offmap.represent.digest import tensors_sha256
from offmap.represent.nets.latent import Codec, coded
from offmap.represent.nets.unet import EDMDenoiser, UNetShape, loss_weight
from offmap.represent.train import checkpoint
from offmap.represent.train.checkpoint import under
from offmap.represent.train.parallel import ALONE, Crew
from offmap.represent.train.planted import Trial
from offmap.represent.train.randomness import generator_of

LEAST, FEW = 16, 200
"""Training images below which a run is refused, and below which its result carries a note."""


@dataclass(frozen=True)
class DiffusionPlan:
    """How a diffusion model is trained.

    Args:
        size: side of the images in pixels.
        widths, blocks: channels of each level, and residual blocks a level.
        steps: optimiser steps; None = until the minutes are over.
        minutes: wall-clock time; None = until the steps are done. With minutes the learning rate follows the clock, and a
            resumed run is not bit for bit that of one sitting.
        batch: images a step.
        rate: highest learning rate of AdamW, reached after ``warmup`` steps, then a cosine to 0.
        clip: largest gradient norm.
        average: decay of the running mean of the weights, which is what scores.
        noise_mean, noise_spread: of the logarithm of the noise's deviation, in units of pixels in [-1, 1].
        precision: of forward and backward passes; ``bfloat16`` is more than twice as fast on processors and cards that have it
            in hardware and slow on others. Weights and their steps are in float32 in any case.
        held_out: share of the images on which checkpoints are judged.
        check_every: steps between checkpoints.
        patience: checkpoints in a row that are worse than the best one until the run ends early.
        margin: how much smaller than the best an area may be not to count as worse; the latest such checkpoint is kept.
    """

    size: int = 32
    widths: tuple[int, ...] = (32, 64, 64)
    blocks: int = 1
    steps: int | None = 4000
    minutes: float | None = None
    batch: int = 32
    rate: float = 1e-3
    warmup: int = 100
    clip: float = 1.0
    average: float = 0.995
    noise_mean: float = -1.2
    noise_spread: float = 1.2
    precision: Literal["float32", "bfloat16"] = "float32"
    held_out: float = 0.1
    check_every: int = 250
    patience: int = 8
    margin: float = 0.01

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise ConfigError("give steps or minutes: how long the diffusion model is to be trained")
        for key in ("size", "steps", "minutes", "batch", "rate", "warmup", "clip", "noise_spread", "check_every", "patience"):
            value = getattr(self, key)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{key} = {value} must be positive")
        if not 0 <= self.average < 1 or not 0 < self.held_out <= 0.5 or not 0 <= self.margin < 0.5:
            raise ConfigError(f"average = {self.average} [0, 1), held_out = {self.held_out} (0, 0.5], margin = {self.margin} [0, 0.5)")
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(f"precision = {self.precision!r} must be 'float32' or 'bfloat16'")
        if self.size < UNetShape(widths=self.widths, blocks=self.blocks).stride:
            raise ConfigError(f"size = {self.size} is smaller than the stride of {len(self.widths)} levels, {2 ** (len(self.widths) - 1)}")

    def done(self, step: int, seconds: float) -> float:
        """Share of the run that is over, in [0, 1]."""
        shares = (step / self.steps if self.steps else 0.0, seconds / (60 * self.minutes) if self.minutes else 0.0)
        return min(1.0, max(shares))

    def rate_at(self, step: int, seconds: float) -> float:
        """Learning rate of the next step."""
        return self.rate * min(1.0, (step + 1) / self.warmup) * 0.5 * (1 + math.cos(math.pi * self.done(step, seconds)))


@dataclass(frozen=True, slots=True)
class DiffusionProgress:
    """One step: its loss, the last held-out loss and area (NaN before the first checkpoint), and the share of the run that is over."""

    step: int
    loss: float
    held_out: float
    area: float
    done: float


@dataclass(frozen=True, slots=True, eq=False)
class TrainedDiffusion:
    """What a run gave.

    Args:
        net: running mean of the weights at the checkpoint that was kept, on the CPU, in eval mode.
        steps: taken.
        kept: step of that checkpoint.
        area: AUROC of its denoising error, held-out images against the same with drawn anomalies.
        rate: images a second, over all sittings.
        notes: for people: why it ended early, few images.
    """

    net: EDMDenoiser
    steps: int
    kept: int
    area: float
    rate: float
    notes: tuple[str, ...]


def train_diffusion(
    images: Float[Tensor, "n c *s"],
    plan: DiffusionPlan,
    *,
    out: Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    resume: bool = False,
    held_out: Int64[Tensor, " m"] | None = None,
    labels: Int64[Tensor, " n"] | None = None,
    label_dropout: float = 0.2,
    codec: Codec | None = None,
    progress: Callable[[DiffusionProgress], None] | None = None,
) -> TrainedDiffusion:
    """Train on normal images.

    Args:
        images: prepared, in [0, 1]; with two axes of space, or three.
        out: folder for the checkpoint and ``log.jsonl``; nothing is written where there is none.
        seed: of weights, division, batches and noise.
        resume: go on from the checkpoint in ``out`` if there is one.
        held_out: rows that judge checkpoints and train nothing; drawn where not given.
        labels: class of each image, 0 to K - 1.
        label_dropout: share of the images that are shown without their class, so that the network can do without (Ho and Salimans, 2022,
            arXiv:2207.12598).
        codec: train on codes of the images instead of pixels.
        progress: told of each step.

    Raises:
        DataError: fewer than 16 images, all of one value, or some that are not finite (rows named).
        ConfigError: images of another size, a checkpoint of another run or one that cannot be written, or a loss that is not
            finite before the first checkpoint.
        NotAvailableError: MONAI, einops or the device is missing.
    """
    crew = Crew.present()
    if crew.size > 1 and (plan.minutes is not None or plan.batch % crew.size):
        raise ConfigError(
            f"{crew.size} processes train in step: give steps and no minutes, and a batch that they can share (batch = {plan.batch})"
        )
    if len(images) < LEAST:
        raise DataError(f"{len(images)} images to train a diffusion model on: {LEAST} are the least, {FEW} or more are meant")
    if any(n != plan.size for n in images.shape[2:]):
        raise ConfigError(f"images of shape {tuple(images.shape)} do not have sides of size = {plan.size}")
    good = torch.isfinite(images).flatten(1).all(dim=1)
    if not bool(good.all()):
        raise DataError(f"training images are not finite in rows {torch.nonzero(~good).flatten().tolist()[:8]}: leave them out")
    run = _Run.of(images, plan, seed, resolve_device(device), held_out, labels, codec, label_dropout)
    identity = {
        "plan": {k: v for k, v in asdict(plan).items() if k != "patience"},
        "seed": seed,
        "images": tensors_sha256({"images": images, "rows": torch.empty(0) if held_out is None else held_out}),
        **({} if labels is None else {"labels": [tensors_sha256({"labels": labels}), label_dropout]}),
        **({} if codec is None else {"codec": tensors_sha256(dict(codec.state_dict()))}),
    }
    state = run.begin()
    if out is not None and resume and (out / checkpoint.FILE).is_file():
        state.load(*checkpoint.read(out, identity))
    notes = [] if len(images) >= FEW else [f"{len(images)} training images are few: the model may know them by heart"]
    notes += run.go(state, out, identity, progress)
    return TrainedDiffusion(
        state.exported(), state.step, state.kept, state.best_area, state.step * plan.batch / max(state.seconds, 1e-9), tuple(notes)
    )


@dataclass(slots=True)
class _State:
    """All that changes in a run."""

    net: EDMDenoiser
    average: EDMDenoiser
    optimiser: torch.optim.AdamW
    best: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    seconds: float = 0.0
    highest: float = -math.inf
    best_area: float = math.nan
    kept: int = 0
    waits: int = 0

    NUMBERS = ("step", "seconds", "highest", "best_area", "kept", "waits")

    def save(self, folder: Path, identity: dict[str, Any]) -> None:
        tensors = {f"{part}.{k}": v for part in ("net", "average") for k, v in getattr(self, part).state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        tensors |= {f"optimiser.{k}": v for k, v in checkpoint.moments_of(self.optimiser).items()}
        checkpoint.write(folder, tensors, {name: getattr(self, name) for name in self.NUMBERS}, identity)

    def load(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        self.net.load_state_dict(under("net", tensors))
        self.average.load_state_dict(under("average", tensors))
        self.best = under("best", tensors)
        checkpoint.take_moments(self.optimiser, under("optimiser", tensors))
        for name in self.NUMBERS:
            setattr(self, name, numbers[name])

    def judge(self, area: float, margin: float) -> None:
        """Keep the average unless its area is worse than the best by more than the margin."""
        self.highest = max(self.highest, area)
        if area < self.highest - margin:
            self.waits += 1
            return
        self.waits, self.kept, self.best_area = 0, self.step, area
        self.best = {name: value.detach().cpu().clone() for name, value in self.average.state_dict().items()}

    def exported(self) -> EDMDenoiser:
        net = copy.deepcopy(self.average).cpu()
        net.load_state_dict(self.best or net.state_dict())
        net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        net.eval().requires_grad_(False)
        return net


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    plan: DiffusionPlan
    seed: int
    train: Tensor
    trial: Trial
    sigma_data: float
    device: torch.device
    labels: Tensor | None = None
    label_dropout: float = 0.2
    crew: Crew = field(default_factory=Crew.present)

    @classmethod
    def of(
        cls,
        images: Tensor,
        plan: DiffusionPlan,
        seed: int,
        device: torch.device,
        rows: Tensor | None = None,
        labels: Tensor | None = None,
        codec: Codec | None = None,
        label_dropout: float = 0.2,
    ) -> "_Run":
        """Divide the images, measure their root mean square, draw anomalies into the held-out ones."""
        if rows is None:
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
            rows = order[: max(4, round(plan.held_out * len(images)))]
        own = torch.ones(len(images), dtype=torch.bool)
        own[rows] = False
        train, held_out = images[own], images[rows]
        if float(train.std(correction=0)) < 1e-4:
            raise DataError("the training images all have one value everywhere: there is nothing to learn")
        trial, clean = Trial.of(held_out.float(), seed), 2 * train.float() - 1
        if codec is not None:
            codec = codec.to(device)
            trial, clean = trial.coded(lambda x: coded(codec, x, device), seed), coded(codec, clean, device)
        sigma_data = float(clean.double().square().mean().sqrt())
        return cls(plan, seed, clean, trial, sigma_data, device, None if labels is None else labels[own], label_dropout)

    def begin(self) -> _State:
        """Weights drawn, optimiser empty."""
        classes = 0 if self.labels is None else int(self.labels.max()) + 1
        shape = UNetShape(int(self.train.shape[1]), self.train.ndim - 2, self.plan.widths, self.plan.blocks, classes=classes)
        net = EDMDenoiser(shape, self.sigma_data, generator=self._generator((1 << 31) - 1)).to(self.device)
        net = net.to(memory_format=torch.channels_last) if shape.axes == 2 else net  # type: ignore[call-overload]
        return _State(net, copy.deepcopy(net), torch.optim.AdamW(net.parameters(), lr=self.plan.rate, weight_decay=0.0))

    def _generator(self, step: int) -> torch.Generator:
        """Randomness of one step; it depends on nothing that came before, so that a resumed run draws the same."""
        return generator_of(self.seed, step)

    def loss(self, net: EDMDenoiser, clean: Tensor, rng: torch.Generator, labels: Tensor | None = None, crew: Crew = ALONE) -> Tensor:
        """``mean lambda(sigma) (D(x + sigma n, sigma) - x)^2``, sigma log-normal; over this process's part of the batch."""
        logs = self.plan.noise_mean + self.plan.noise_spread * torch.randn(len(clean), generator=rng)
        noise = crew.part(torch.randn(clean.shape, generator=rng)).to(self.device)
        if labels is not None:
            labels = crew.part(self._dropped(labels, net.shape.classes, rng))
        clean, sigma = crew.part(clean), crew.part(logs.exp()).to(self.device)
        level = sigma.view(-1, *[1] * (clean.ndim - 1))
        seen = clean + level * noise
        seen = seen.contiguous(memory_format=torch.channels_last) if seen.ndim == 4 else seen
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.plan.precision == "bfloat16"):
            found = net(seen, sigma) if labels is None else net(seen, sigma, labels)
        errors = (found.float() - clean).square().flatten(1).mean(dim=1)
        mean: Tensor = (loss_weight(sigma, self.sigma_data) * errors).mean()
        return mean

    def _dropped(self, labels: Tensor, nothing: int, rng: torch.Generator) -> Tensor:
        """Labels, some of them replaced by that of no class."""
        return torch.where(torch.rand(len(labels), generator=rng) < self.label_dropout, nothing, labels).to(self.device)

    def step(self, state: _State) -> float:
        """One optimiser step; its loss, not finite where no step could be made."""
        rng = self._generator(state.step)
        for group in state.optimiser.param_groups:
            group["lr"] = self.plan.rate_at(state.step, state.seconds)
        rows = torch.randint(len(self.train), (self.plan.batch,), generator=rng)
        state.net.train()
        state.optimiser.zero_grad()
        labels = None if self.labels is None else self.labels[rows]
        loss = self.loss(state.net, self.train[rows].to(self.device), rng, labels, self.crew)
        value = self.crew.mean(float(loss.detach()), self.device)
        if not math.isfinite(value):
            return math.nan
        loss.backward()
        self.crew.average(state.net)
        size = torch.nn.utils.clip_grad_norm_(state.net.parameters(), self.plan.clip)
        if not bool(torch.isfinite(size)):
            return math.nan
        state.optimiser.step()
        state.step += 1
        checkpoint.follow(state.average, state.net, self.plan.average, state.step)
        return value

    def check(self, state: _State) -> tuple[float, float]:
        """Held-out loss and area of the running mean, which is kept when the area has not fallen."""
        state.average.eval()
        with torch.no_grad():
            held_out = float(self.loss(state.average, 2 * self.trial.normal.to(self.device) - 1, self._generator(1 << 31)))
            area = self.trial.area(state.average, self.device)
        state.judge(area, self.plan.margin)
        return held_out, area

    def go(
        self, state: _State, out: Path | None, identity: dict[str, Any], progress: Callable[[DiffusionProgress], None] | None
    ) -> list[str]:
        """Steps until the plan is done, the area stays below the best, or the loss is not finite; says why it ended early."""
        before, start, held_out, area = state.seconds, time.monotonic(), math.nan, math.nan
        while self.plan.done(state.step, state.seconds) < 1:
            loss = self.step(state)
            if math.isnan(loss):
                return [_diverged(state, self.plan)]
            state.seconds = before + time.monotonic() - start
            done = self.plan.done(state.step, state.seconds)
            if state.step % self.plan.check_every == 0 or done >= 1:
                held_out, area = self.check(state)
                if out is not None and self.crew.rank == 0:
                    state.save(out, identity)
            now = DiffusionProgress(state.step, loss, held_out, area, done)
            if self.crew.rank == 0:
                _report(now, out, progress)
            if state.waits >= self.plan.patience:
                return [f"ended at step {state.step}: drawn anomalies were seen best at step {state.kept}, whose weights are kept"]
        return []


def _diverged(state: _State, plan: DiffusionPlan) -> str:
    what = f"the loss or its gradient was not finite at step {state.step + 1}"
    if not state.best:
        raise ConfigError(f"{what}, before the first checkpoint: take a lower rate than {plan.rate}, or precision = 'float32'")
    return f"ended early: {what}; the weights are those of step {state.kept}"


def _report(now: DiffusionProgress, out: Path | None, progress: Callable[[DiffusionProgress], None] | None) -> None:
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        values = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(now).items()}
        with (out / "log.jsonl").open("a") as log:
            log.write(json.dumps(values) + "\n")
    if progress is not None:
        progress(now)
