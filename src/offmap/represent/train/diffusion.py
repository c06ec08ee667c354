"""Training of a pixel diffusion model on normal images; the checkpoint is chosen without labels, on drawn anomalies.

Loss, preconditioning and noise levels of Karras et al., NeurIPS 2022, 2206.00364, table 1 (column "Ours").
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.represent.device import resolve_device
from offmap.represent.digest import tensors_sha256
from offmap.represent.nets.latent import Codec, coded
from offmap.represent.nets.unet import EDMDenoiser, UNetShape, loss_weight
from offmap.represent.train.judged import DescentRun, Schedule, State, Watch
from offmap.represent.train.normal_images import divided, notes_on, require_usable
from offmap.represent.train.parallel import ALONE, Crew
from offmap.represent.train.planted import Trial


@dataclass(frozen=True)
class DiffusionPlan(Schedule):
    """How a diffusion model is trained.

    Args:
        size: side of the images in pixels.
        widths, blocks: channels of each level, and residual blocks a level.
        fold: pixels on each side that become channels before the first level; 2 is two to three times as fast at 64 pixels.
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
    fold: int = 1
    noise_mean: float = -1.2
    noise_spread: float = 1.2

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("size", "noise_spread"):
            if not 0 < getattr(self, key) < math.inf:
                raise ConfigError(f"{key} = {getattr(self, key)} must be positive")
        stride = UNetShape(widths=self.widths, blocks=self.blocks, fold=self.fold).stride
        if self.size < stride:
            raise ConfigError(f"size = {self.size} is smaller than the stride of {len(self.widths)} levels, {stride}")


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
    start: EDMDenoiser | None = None,
    progress: Watch | None = None,
) -> TrainedDiffusion:
    """Train on normal images.

    Args:
        images: prepared, in [0, 1]; with two axes of space, or three.
        out: folder for the checkpoint and ``log.jsonl``; nothing is written where there is none.
        seed: of weights, division, batches and noise.
        resume: go on from the checkpoint in ``out`` if there is one.
        held_out: rows that judge checkpoints and train nothing; drawn where not given.
        start: a trained network of the same architecture whose weights the run begins with: fine-tuning. It is not changed.
        labels: class of each image, 0 to K - 1.
        label_dropout: share of the images that are shown without their class, so that the network can do without (Ho and Salimans, 2022,
            arXiv:2207.12598).
        codec: train on codes of the images instead of pixels.
        progress: told of each step.

    Raises:
        DataError: fewer than 16 images, all of one value, or some that are not finite (rows named).
        ConfigError: images of another size, a start of another architecture, a checkpoint of another run or one that cannot be
            written, or a loss that is not finite before the first checkpoint.
        NotAvailableError: MONAI, einops or the device is missing.
    """
    require_usable(images, "a diffusion model")
    if any(n != plan.size for n in images.shape[2:]):
        raise ConfigError(f"images of shape {tuple(images.shape)} do not have sides of size = {plan.size}")
    run = _Run.of(images, plan, seed, resolve_device(device), held_out, labels, codec, label_dropout)
    identity = {
        "plan": {k: v for k, v in asdict(plan).items() if k != "patience" and (k, v) != ("fold", 1)},
        "seed": seed,
        "images": tensors_sha256({"images": images, "rows": torch.empty(0) if held_out is None else held_out}),
        **({} if labels is None else {"labels": [tensors_sha256({"labels": labels}), label_dropout]}),
        **({} if codec is None else {"codec": tensors_sha256(dict(codec.state_dict()))}),
    }
    if start is not None:
        identity["start"] = tensors_sha256(start.state_dict())
    state = run.begin(start)
    notes = notes_on(len(images), "model") + run.sit(state, out, identity, resume=resume, progress=progress)
    return TrainedDiffusion(
        state.exported(), state.step, state.kept, state.best_area, state.step * plan.batch / max(state.seconds, 1e-9), tuple(notes)
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Run(DescentRun[EDMDenoiser]):
    plan: DiffusionPlan
    seed: int
    train: Tensor
    trial: Trial
    sigma_data: float
    device: torch.device
    labels: Tensor | None = None
    label_dropout: float = 0.2
    criterion: str = "drawn anomalies"

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
        train, held_out, own = divided(images, plan.held_out, seed, rows)
        trial, clean = Trial.of(held_out, seed), 2 * train - 1
        if codec is not None:
            codec = codec.to(device)
            trial, clean = trial.coded(lambda x: coded(codec, x, device), seed), coded(codec, clean, device)
        sigma_data = float(clean.double().square().mean().sqrt())
        return cls(plan, seed, clean, trial, sigma_data, device, None if labels is None else labels[own], label_dropout)

    def begin(self, start: EDMDenoiser | None = None) -> State[EDMDenoiser]:
        """Weights drawn, or those of a network to start from; optimiser empty."""
        classes = 0 if self.labels is None else int(self.labels.max()) + 1
        channels, axes = int(self.train.shape[1]), self.train.ndim - 2
        shape = UNetShape(channels, axes, self.plan.widths, self.plan.blocks, fold=self.plan.fold, classes=classes)
        net = EDMDenoiser(shape, self.sigma_data, generator=self.generator((1 << 31) - 1)).to(self.device)
        if start is not None:
            if start.shape != shape:
                raise ConfigError(f"the network to start from has the architecture {start.shape.to_json()}, the plan {shape.to_json()}")
            net.load_state_dict(start.state_dict())
        net = net.to(memory_format=torch.channels_last) if shape.axes == 2 else net  # type: ignore[call-overload]
        return State.fresh(net, self.plan)

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

    def step_loss(self, net: EDMDenoiser, step: int) -> Tensor:
        rng = self.generator(step)
        rows = torch.randint(len(self.train), (self.plan.batch,), generator=rng)
        labels = None if self.labels is None else self.labels[rows]
        return self.loss(net, self.train[rows].to(self.device), rng, labels, Crew.present())

    def judged(self, average: EDMDenoiser) -> tuple[float, float]:
        held_out = float(self.loss(average, 2 * self.trial.normal.to(self.device) - 1, self.generator(1 << 31)))
        return held_out, self.trial.area(average, self.device)
