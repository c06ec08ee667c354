"""Training of a small network on the feature maps of a frozen encoder; the checkpoint is chosen without labels, on drawn anomalies."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from offmap.core.encoder import Encoder
from offmap.core.errors import DataError
from offmap.represent.digest import tensors_sha256
from offmap.represent.nets.feature_net import FeatureNet, Maps
from offmap.represent.train.judged import DescentRun, Schedule, State, Watch
from offmap.represent.train.normal_images import FEW, LEAST, notes_on, require_finite
from offmap.represent.train.parallel import ALONE, Crew
from offmap.represent.train.planted import Trial, area_of

KEPT = 1 << 30
"""Bytes of maps that are kept; of more, each step asks the encoder again."""

CHUNK = 16
"""Images at a time where nothing is learnt."""

N = TypeVar("N", bound=FeatureNet)


class Source:
    """Feature maps of images; asked of the encoder once where they fit into memory.

    Args:
        base: frozen.
        layers: whose maps, from shallow to deep.
        images: prepared, in [0, 1].
    """

    def __init__(self, base: Encoder, layers: tuple[str, ...], images: Float[Tensor, "n c h w"], device: torch.device) -> None:
        self._base, self._images, self._device = base, images, device
        self._names = tuple(f"feature_map.{layer}" for layer in layers)
        first = self._asked(images[:1])
        size = len(images) * sum(m.numel() * m.element_size() for m in first)
        self._maps: tuple[Tensor, ...] | None = None
        if size <= KEPT:
            parts = [self._asked(part) for part in images.split(CHUNK)]
            self._maps = tuple(torch.cat(layer).cpu() for layer in zip(*parts, strict=True))

    def _asked(self, images: Tensor) -> list[Tensor]:
        signals = self._base.encode(images.to(self._device), frozenset(self._names))
        return [signals[name].float() for name in self._names]

    def __len__(self) -> int:
        return len(self._images)

    def take(self, rows: Int64[Tensor, " m"]) -> Maps:
        """Of some images, on the device."""
        if self._maps is None:
            return self._asked(self._images[rows])
        return [maps[rows].to(self._device) for maps in self._maps]

    def __iter__(self) -> Iterator[Maps]:
        """Of all images in chunks."""
        return (self.take(rows) for rows in torch.arange(len(self)).split(CHUNK))


@dataclass(frozen=True, slots=True, eq=False)
class TrainedOnFeatures(Generic[N]):
    """What a run gave.

    Args:
        net: running mean of the weights at the checkpoint that was kept, on the CPU, in eval mode.
        steps: taken.
        kept: step of that checkpoint.
        area: AUROC of its score of an image, held-out images against the same with drawn anomalies.
        rate: images a second, over all sittings.
        notes: for people: why it ended early, few images.
    """

    net: N
    steps: int
    kept: int
    area: float
    rate: float
    notes: tuple[str, ...]


def train_on_features(
    net: N,
    base: Encoder,
    layers: tuple[str, ...],
    images: Float[Tensor, "n c h w"],
    held_out: Int64[Tensor, " m"],
    plan: Schedule,
    *,
    out: Path | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    resume: bool = False,
    progress: Watch | None = None,
) -> TrainedOnFeatures[N]:
    """Train on normal images.

    Args:
        net: fresh; is changed.
        base: on the device; stays as it is.
        layers: whose maps the network reads.
        images: prepared for the base encoder, in [0, 1].
        held_out: rows that judge checkpoints and train nothing.
        out: folder for the checkpoint and ``log.jsonl``; nothing is written where there is none.
        seed: of batches and noise.
        resume: go on from the checkpoint in ``out`` if there is one.
        progress: told of each step.

    Raises:
        DataError: fewer than 16 training images, all the same, or some that are not finite (rows named).
        ConfigError: a checkpoint of another run or one that cannot be written, or a loss that is not finite before the first one.
    """
    place = torch.device(device)
    own = torch.ones(len(images), dtype=torch.bool)
    own[held_out] = False
    _check(images, int(own.sum()))
    source = Source(base, layers, images[own], place)
    trial = Trial.of(images[~own].float(), seed)
    pair = (Source(base, layers, trial.normal, place), Source(base, layers, trial.odd, place))
    run: _Run[N] = _Run(plan, seed, source, *pair, place)
    net.adapt(source)
    state = State.fresh(net.to(place), plan)
    identity = {
        "plan": {k: v for k, v in asdict(plan).items() if k != "patience"},
        "seed": seed,
        "encoder": base.sha256,
        "images": tensors_sha256({"images": images, "rows": held_out}),
    }
    notes = notes_on(len(source), "network") + run.sit(state, out, identity, resume=resume, progress=progress)
    speed = state.step * plan.batch / max(state.seconds, 1e-9)
    return TrainedOnFeatures(state.exported(), state.step, state.kept, state.best_area, speed, tuple(notes))


def _check(images: Float[Tensor, "n c h w"], training: int) -> None:
    if training < LEAST or len(images) - training < 2:
        raise DataError(
            f"{training} images to train a network on feature maps, and {len(images) - training} to choose its checkpoint: "
            f"{LEAST} and 2 are the least, {FEW} or more are meant"
        )
    require_finite(images, "training")
    if bool((images == images[:1]).all()):
        raise DataError("the training images are all the same: there is nothing to learn")


@dataclass(frozen=True, slots=True, eq=False)
class _Run(DescentRun[N]):
    plan: Schedule
    seed: int
    train: Source
    normal: Source
    odd: Source
    device: torch.device
    criterion: str = "drawn anomalies"

    def loss(self, net: N, maps: Maps, rng: torch.Generator, crew: Crew = ALONE) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.plan.precision == "bfloat16"):
            return net.loss(maps, rng, crew)

    def step_loss(self, net: N, step: int) -> Tensor:
        rng, crew = self.generator(step), Crew.present()
        rows = torch.randint(len(self.train), (self.plan.batch,), generator=rng)
        return self.loss(net, self.train.take(crew.part(rows)), rng, crew)

    def judged(self, average: N) -> tuple[float, float]:
        rng = self.generator(1 << 31)
        losses = torch.stack([self.loss(average, maps, rng).float() for maps in self.normal])
        own, other = (torch.cat([average.of_image(average.oddness(maps)) for maps in part]).double() for part in (self.normal, self.odd))
        return float(losses.mean()), area_of(own, other)
