"""Training of a network with four exits from scratch, on labelled images; the checkpoint is chosen on images held out for that."""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from offmap.core.encoder import Input
from offmap.core.errors import ConfigError
from offmap.represent.classifier import ClassifierEncoder
from offmap.represent.device import resolve_device
from offmap.represent.digest import tensors_sha256
from offmap.represent.layers import normalise
from offmap.represent.multi_exit import Exits, WithExits
from offmap.represent.nets.multi_exit import STAGES, MultiExitResNet
from offmap.represent.train import checkpoint
from offmap.represent.train.augment import Augment, augmented
from offmap.represent.train.parallel import Crew


@dataclass(frozen=True, slots=True)
class ExitPlan:
    """How a network with exits is trained; the defaults are those of arXiv:2505.08604 for PathMNIST.

    Args:
        epochs: passes over the training part.
        batch: images a step.
        rate, last_rate: learning rate of SGD, along a cosine from the one to the other.
        momentum, weight_decay: of SGD.
        exits: weight of each exit's cross-entropy, shallow to deep.
        balanced: draw images so that classes come equally often, as the paper does for ISIC 2019.
        held_out: share of each class that chooses the checkpoint. The paper's code chooses on the test images.
        precision: of forward and backward passes; ``bfloat16`` halves the time on processors and cards that have it in hardware
            and is slow on others. Weights and their steps are in float32 in any case.
        augment: ``light`` (shifts and flips) or ``strong`` (also turns, scale, shear, tone and a cut-out square, as in the paper).
    """

    epochs: int = 20
    batch: int = 256
    rate: float = 0.01
    last_rate: float = 1e-4
    momentum: float = 0.9
    weight_decay: float = 1e-4
    exits: tuple[float, float, float, float] = (0.25, 0.5, 0.75, 1.0)
    balanced: bool = False
    held_out: float = 0.15
    precision: Literal["float32", "bfloat16"] = "float32"
    augment: Augment = "light"

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 2 or not 0 < self.held_out <= 0.5:
            raise ConfigError(f"epochs = {self.epochs} (1 or more), batch = {self.batch} (2 or more), held_out = {self.held_out} (to 0.5)")
        if self.augment not in get_args(Augment):
            raise ConfigError(f"augment = {self.augment!r} must be one of {', '.join(get_args(Augment))}")
        if not 0 <= self.last_rate <= self.rate or not 0 <= self.momentum < 1 or self.weight_decay < 0 or min(self.exits) < 0:
            raise ConfigError("0 <= last_rate <= rate, momentum in [0, 1), weight_decay and the exits' weights not negative expected")

    def rate_at(self, done: float) -> float:
        """Learning rate when a share ``done`` of all steps is over."""
        return self.last_rate + 0.5 * (self.rate - self.last_rate) * (1 + math.cos(math.pi * done))


@dataclass(frozen=True, eq=False)
class TrainedExits:
    """What a run gave.

    Args:
        net: with the weights of the best epoch, in eval mode.
        areas: macro one-against-the-rest AUROC of the last exit on the held-out images, after each epoch.
        epoch: the one that was kept, from 0: the last of those with the largest area.
        train, held_out: rows of the images in each part.
    """

    net: MultiExitResNet
    areas: tuple[float, ...]
    epoch: int
    train: Int64[Tensor, " n"]
    held_out: Int64[Tensor, " m"]


def train_multi_exit(
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    plan: ExitPlan,
    *,
    spec: Input,
    depth: int = 18,
    width: int = 64,
    out: Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    resume: bool = False,
    progress: Callable[[int, float, float], None] | None = None,
    watch: Callable[[int, MultiExitResNet], None] | None = None,
    held_out: Int64[Tensor, " m"] | None = None,
) -> TrainedExits:
    """Train on images in memory, with ``loss = sum_e w_e CE(logits_e, y)`` on images changed at random.

    Args:
        images: prepared, in [0, 1].
        labels: 0 ... K-1.
        spec: what the network sees: size and normalisation of the images.
        out: folder for the checkpoint; nothing is written where there is none.
        seed: of weights, division, batches and views.
        resume: go on from the checkpoint in ``out`` if there is one.
        progress: told epoch, mean loss, and area on the held-out images; first of the epochs of earlier sittings.
        watch: given the epoch and the network as it is after it, in eval mode; what it changes is trained on.
        held_out: rows that choose the checkpoint; ``plan.held_out`` of each class, at random, when None.

    Raises:
        ConfigError: labels are not 0 ... K-1 with at least two images each, K of 2 or more, or a class is missing on one side; a
            checkpoint of another run or one that cannot be written; several processes.
    """
    if Crew.present().size > 1:
        raise ConfigError("a network with exits is trained in one process: start one")
    counts = labels.bincount() if len(labels) and int(labels.min()) >= 0 else torch.zeros(0)
    if len(counts) < 2 or int(counts.min()) < 2 or len(labels) != len(images):
        raise ConfigError(f"labels must be 0 ... K-1, K of 2 or more, two images of each, one for each of the {len(images)} images")
    rng, place = torch.Generator().manual_seed(seed), resolve_device(device)
    train, held_out = _divided(labels, plan.held_out, rng) if held_out is None else _without(labels, held_out)
    net = MultiExitResNet(len(counts), depth=depth, channels=spec.channels, width=width, generator=rng)
    net = net.to(place).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.SGD(net.parameters(), lr=plan.rate, momentum=plan.momentum, weight_decay=plan.weight_decay)
    state = _State(net, optimiser, rng, copy.deepcopy(net.state_dict()))
    data = {"images": images, "labels": labels, "rows": held_out}
    identity = {"plan": asdict(plan), "network": [depth, width, spec.channels, spec.size], "seed": seed, "images": tensors_sha256(data)}
    if out is not None and resume and (out / checkpoint.FILE).is_file():
        state.load(*checkpoint.read(out, identity))
    for epoch in range(plan.epochs):
        if epoch >= len(state.areas):
            start = time.monotonic()
            state.losses.append(_epoch(net, optimiser, images, labels, train, plan, epoch, spec, rng))
            state.keep(_area(net, images[held_out], labels[held_out], spec, plan.batch))
            if watch is not None:
                watch(epoch, net)
            state.seconds += time.monotonic() - start
            if out is not None:
                state.save(out, identity)
        if progress is not None:
            progress(epoch, state.losses[epoch], state.areas[epoch])
    net.load_state_dict(state.best)
    still = net.to(memory_format=torch.contiguous_format).eval()
    return TrainedExits(still, tuple(state.areas), _last_best(state.areas), train, held_out)


@dataclass(slots=True)
class _State:
    """All that changes in a run."""

    net: MultiExitResNet
    optimiser: torch.optim.SGD
    rng: torch.Generator
    best: dict[str, Tensor]
    areas: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def keep(self, area: float) -> None:
        """After an epoch: its weights, unless an earlier one was better."""
        self.areas.append(area)
        if area >= max(self.areas):
            self.best = copy.deepcopy(self.net.state_dict())

    def save(self, folder: Path, identity: dict[str, Any]) -> None:
        """Write the checkpoint."""
        tensors = {f"net.{k}": v for k, v in self.net.state_dict().items()} | {f"best.{k}": v for k, v in self.best.items()}
        moments = checkpoint.moments_of(self.optimiser).items()
        tensors |= {"rng": self.rng.get_state(), **{f"optimiser.{k}": v for k, v in moments if v is not None}}
        checkpoint.write(folder, tensors, {"areas": self.areas, "losses": self.losses, "seconds": self.seconds}, identity)

    def load(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Go on from what ``save`` wrote."""
        self.net.load_state_dict(checkpoint.under("net", tensors))
        self.best = checkpoint.under("best", tensors)
        checkpoint.take_moments(self.optimiser, checkpoint.under("optimiser", tensors))
        self.rng.set_state(tensors["rng"])
        self.areas, self.losses = list(numbers["areas"]), list(numbers["losses"])
        self.seconds = numbers["seconds"]


def _last_best(areas: Sequence[float]) -> int:
    """An easy task reaches an area of 1 in its first epoch, when the network knows little of anything else."""
    return len(areas) - 1 - int(np.argmax(areas[::-1]))


def with_own_exits(net: MultiExitResNet, spec: Input, *, device: str = "cpu", class_names: Sequence[str] = ()) -> WithExits:
    """The network as an encoder whose exits are its own; ``class_names`` are those of labels 0 ... K-1, where they are known."""
    base = ClassifierEncoder(net, layers=STAGES, spec=spec, device=device, class_names=class_names)
    weights, biases = net.heads()
    return WithExits(base, Exits(STAGES, tuple(weights), tuple(biases)).to(resolve_device(device)))


def exit_loss(logits: list[Tensor], labels: Int64[Tensor, " n"], weights: tuple[float, ...]) -> Float[Tensor, ""]:
    """``sum_e w_e CE(logits_e, y)``."""
    total: Tensor = torch.stack([w * functional.cross_entropy(z, labels) for w, z in zip(weights, logits, strict=True)]).sum()
    return total


def _divided(labels: Int64[Tensor, " n"], share: float, rng: torch.Generator) -> tuple[Int64[Tensor, " a"], Int64[Tensor, " b"]]:
    """A share of each class is held out, one image at least."""
    train, held = [], []
    for label in labels.unique():
        rows = torch.nonzero(labels == label).flatten()
        rows = rows[torch.randperm(len(rows), generator=rng)]
        count = min(len(rows) - 1, max(1, round(share * len(rows))))
        held.append(rows[:count])
        train.append(rows[count:])
    return torch.cat(train).sort().values, torch.cat(held).sort().values


def _without(labels: Int64[Tensor, " n"], rows: Int64[Tensor, " m"]) -> tuple[Int64[Tensor, " a"], Int64[Tensor, " m"]]:
    rest = torch.ones(len(labels), dtype=torch.bool).index_fill(0, rows, False).nonzero().flatten()
    if len(labels[rest].unique()) < len(labels.unique()) or len(labels[rows].unique()) < len(labels.unique()):
        raise ConfigError(f"held_out: each class must be among the {len(rows)} rows that choose the checkpoint and among the others")
    return rest, rows


def _epoch(
    net: MultiExitResNet,
    optimiser: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    train: Tensor,
    plan: ExitPlan,
    epoch: int,
    spec: Input,
    rng: torch.Generator,
) -> float:
    """One pass; the mean loss."""
    net.train()
    batches = [rows for rows in _order(labels, train, plan.balanced, rng).split(plan.batch) if len(rows) > 1]
    losses = []
    for i, rows in enumerate(batches):
        for group in optimiser.param_groups:
            group["lr"] = plan.rate_at((epoch * len(batches) + i) / (plan.epochs * len(batches)))
        optimiser.zero_grad()
        place = next(net.parameters()).device
        seen, targets = _seen(augmented(images[rows], plan.augment, rng).to(place), spec), labels[rows].to(place)
        with torch.autocast(place.type, torch.bfloat16, enabled=plan.precision == "bfloat16"):
            loss = exit_loss(net.logits(seen), targets, plan.exits)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return float(np.mean(losses)) if losses else float("nan")


def _order(labels: Int64[Tensor, " n"], train: Int64[Tensor, " t"], balanced: bool, rng: torch.Generator) -> Int64[Tensor, " t"]:
    if not balanced:
        return train[torch.randperm(len(train), generator=rng)]
    chances = 1.0 / labels[train].bincount()[labels[train]]
    return train[torch.multinomial(chances, len(train), replacement=True, generator=rng)]


def _seen(images: Float[Tensor, "n c h w"], spec: Input) -> Float[Tensor, "n d h w"]:
    return normalise(images, spec).expand(-1, spec.channels, -1, -1).contiguous(memory_format=torch.channels_last)


def _area(net: MultiExitResNet, images: Tensor, labels: Tensor, spec: Input, batch: int) -> float:
    """Macro one-against-the-rest AUROC of the last exit, ties counted by half."""
    net.eval()
    place = next(net.parameters()).device
    with torch.no_grad():
        chances = torch.cat([net(_seen(part.to(place), spec)).double().softmax(dim=1).cpu() for part in images.split(batch)])
    areas = []
    for k in labels.unique():
        own, other = chances[labels == k, k], chances[labels != k, k]
        above = (own[:, None] > other).double() + 0.5 * (own[:, None] == other).double()
        areas.append(float(above.mean()))
    return float(np.mean(areas))
