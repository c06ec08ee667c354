"""Training of a synthetic-anomaly network: FPI, PII, NSA, CutPaste, or many tasks at once; judged on a task that it never saw."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from offmap.core.component import nearest
from offmap.core.errors import ConfigError, DataError
from offmap.represent.device import resolve_device
from offmap.represent.digest import tensors_sha256
from offmap.represent.nets.synthetic_anomaly import Objective, SyntheticAnomalyNet, SyntheticAnomalyShape
from offmap.represent.synthetic_anomaly import laid_out
from offmap.represent.train.judged import DescentRun, Schedule, State, Watch
from offmap.represent.train.normal_images import divided, notes_on, require_finite, require_usable
from offmap.represent.train.parallel import Crew
from offmap.represent.train.trials import AUCp, HeldOutTask, Judge
from offmap.simulate.lesions import foreground
from offmap.simulate.tasks import SMALLEST, TASKS, Altered, Pixels, Region


@dataclass(frozen=True)
class SyntheticAnomalyPlan(Schedule):
    """How a synthetic-anomaly network is trained.

    Networks of this kind go on getting better at their own tasks while they get worse at what is really odd, up to calling it usual.
    The running mean of the weights is therefore judged on ``held_out_task``, and the best checkpoint is kept. That helps as far as the
    held-out task resembles what is really odd: on brain MR it did not see the over-training that ``AUCp`` saw.

    Args:
        tasks: what images are altered by, of ``fpi``, ``pii``, ``nsa``, ``cutpaste``, ``cutpaste_scar``, ``warp``, ``intensity``.
        held_out_task: another one, on which checkpoints are judged.
        objective: ``map``, the label of each pixel; ``class``, which task it was, if any (CutPaste; three ways with ``cutpaste`` and
            ``cutpaste_scar``); or ``both``.
        unaltered: share of unaltered images in a batch; the others are shared equally by the tasks.
        widths: channels of each level of the network.
        steps, minutes, batch, rate, warmup, clip, average, precision, held_out, check_every, patience, margin: as of ``Schedule``.
    """

    steps: int | None = 1500
    check_every: int = 100
    patience: int = 10

    tasks: tuple[str, ...] = ("fpi",)
    held_out_task: str = "intensity"
    objective: Objective = "map"
    unaltered: float = 0.25
    widths: tuple[int, ...] = (16, 32, 64, 64)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (*self.tasks, self.held_out_task):
            if name not in TASKS:
                raise ConfigError(f"there is no task {name!r}{nearest(name, list(TASKS))}. There are: {', '.join(TASKS)}")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks) or self.held_out_task in self.tasks:
            raise ConfigError(
                f"tasks = {self.tasks} must be one or more that differ, and held_out_task = {self.held_out_task!r} another one: "
                "a checkpoint judged on what the network learns is the last one"
            )
        if not 0 <= self.unaltered <= 0.9 or (self.objective != "map" and self.unaltered == 0):
            raise ConfigError(f"unaltered = {self.unaltered} must lie in 0..0.9, and above 0 where tasks are told apart")
        SyntheticAnomalyShape(1, self.widths, len(self.tasks) + 1, self.objective)

    def shape(self, channels: int, axes: int = 2) -> SyntheticAnomalyShape:
        """Of the network, for images of so many axes of space."""
        return SyntheticAnomalyShape(channels, self.widths, len(self.tasks) + 1, self.objective, axes)


@dataclass(frozen=True, slots=True, eq=False)
class TrainedSyntheticAnomaly:
    """What a run gave.

    Args:
        net: running mean of the weights at the checkpoint that was kept, on the CPU, in eval mode.
        last: the same at the end of the run; for comparison.
        steps: taken.
        kept: step of the checkpoint that was kept.
        area: what it was judged by: the area of ``HeldOutTask``, or of ``AUCp``.
        transductive: unlabelled images took part in the choice of the checkpoint: scores of these images are no scores of unseen ones.
        rate: images a second, over all sittings.
        notes: for people: why it ended early, few images, a transductive choice.
    """

    net: SyntheticAnomalyNet
    last: SyntheticAnomalyNet
    steps: int
    kept: int
    area: float
    transductive: bool
    rate: float
    notes: tuple[str, ...]


def train_synthetic_anomaly(
    images: Float[Tensor, "n c *s"],
    plan: SyntheticAnomalyPlan,
    *,
    out: Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    resume: bool = False,
    held_out: Int64[Tensor, " k"] | None = None,
    unlabelled: Float[Tensor, "m c *s"] | None = None,
    progress: Watch | None = None,
) -> TrainedSyntheticAnomaly:
    """Train on normal images.

    Args:
        images: prepared, in [0, 1], 1 or 3 channels; with two axes of space, or three, of any one size from 8 pixels and the network's
            stride on.
        out: folder for the checkpoint and ``log.jsonl``; nothing is written where there is none.
        seed: of weights, division, batches and alterations.
        resume: go on from the checkpoint in ``out`` if there is one.
        held_out: rows that judge checkpoints and train nothing; drawn where not given.
        unlabelled: images of which some are odd, nobody says which; where given, checkpoints are judged by ``AUCp`` in place of the
            held-out task, and the result is marked as transductive.
        progress: told of each step.

    Raises:
        DataError: fewer than 16 images, all of one value, or some that are not finite (rows named).
        ConfigError: images that are too small or have other channels, a checkpoint of another run or one that cannot be written, or a
            loss that is not finite before the first checkpoint.
        NotAvailableError: MONAI or the device is missing.
    """
    _check(images, plan, "training")
    require_usable(images, "a synthetic-anomaly network")
    if unlabelled is not None:
        _check(unlabelled, plan, "unlabelled")
    run = _Run.of(images, plan, seed, resolve_device(device), held_out, unlabelled)
    known = {"images": images, "rows": held_out, "unlabelled": unlabelled}
    identity = {
        "plan": {k: v for k, v in asdict(plan).items() if k != "patience"},
        "seed": seed,
        "images": tensors_sha256({k: torch.empty(0) if v is None else v for k, v in known.items()}),
    }
    state = run.begin()
    notes = notes_on(len(images), "network") + run.sit(state, out, identity, resume=resume, progress=progress)
    if unlabelled is not None:
        notes.append(
            f"transductive: {len(unlabelled)} unlabelled images chose the checkpoint; scores of these are no scores of unseen ones"
        )
    rate = state.step * plan.batch / max(state.seconds, 1e-9)
    found = (state.exported(), state.latest(), state.step, state.kept, state.best_area)
    return TrainedSyntheticAnomaly(*found, transductive=unlabelled is not None, rate=rate, notes=tuple(notes))


def _check(images: Tensor, plan: SyntheticAnomalyPlan, which: str) -> None:
    least = max(SMALLEST, plan.shape(1).stride)
    if images.ndim not in (4, 5) or images.shape[1] not in (1, 3) or min(images.shape[2:]) < least:
        raise ConfigError(
            f"{which} images of shape {tuple(images.shape)} must have 1 or 3 channels and two or three sides of {least} pixels or more"
        )
    require_finite(images, which)


@dataclass(frozen=True, slots=True, eq=False)
class _Run(DescentRun[SyntheticAnomalyNet]):
    plan: SyntheticAnomalyPlan
    seed: int
    train: list[Pixels]
    bodies: list[Region]
    judge: Judge
    held_out: HeldOutTask
    device: torch.device
    criterion: str

    @classmethod
    def of(
        cls, images: Tensor, plan: SyntheticAnomalyPlan, seed: int, device: torch.device, rows: Tensor | None, unlabelled: Tensor | None
    ) -> "_Run":
        """Divide the images, and alter the held-out ones."""
        train, unseen, _ = divided(images.cpu(), plan.held_out, seed, rows)
        if len(train) < 2 or len(unseen) < 2:
            raise DataError(f"{len(train)} images train and {len(unseen)} are held out: two of each are the least")
        pixels = list(train.numpy())
        trial = HeldOutTask.of(TASKS[plan.held_out_task], unseen, train, seed)
        judge: Judge = trial if unlabelled is None else AUCp(train, unlabelled.cpu().float())
        words = f"anomalies of the held-out task {plan.held_out_task}" if unlabelled is None else "unlabelled images, by AUCp,"
        return cls(plan, seed, pixels, [foreground(p) for p in pixels], judge, trial, device, words)

    def begin(self) -> State[SyntheticAnomalyNet]:
        """Weights drawn, optimiser empty."""
        shape = self.plan.shape(len(self.train[0]), self.train[0].ndim - 1)
        net = SyntheticAnomalyNet(shape, generator=self.generator((1 << 31) - 1)).to(self.device)
        net = net.to(memory_format=torch.channels_last) if shape.axes == 2 else net  # type: ignore[call-overload]
        return State.fresh(net, self.plan)

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels of their pixels, and classes: 0 unaltered, then the tasks in their order."""
        rng = np.random.default_rng((self.seed, step))
        found: list[Altered] = []
        for _ in range(self.plan.batch):
            i, j = rng.choice(len(self.train), size=2, replace=False)
            if rng.random() < self.plan.unaltered:
                blank = np.zeros(self.train[i].shape[1:], np.float32)
                found.append(Altered(self.train[i], blank, blank > 0, ""))
                continue
            task = TASKS[self.plan.tasks[int(rng.integers(len(self.plan.tasks)))]]
            found.append(task.alter([self.train[i], self.train[j]], rng, bodies=[self.bodies[i], self.bodies[j]]))
        names = ("", *self.plan.tasks)
        classes = torch.tensor([names.index(one.task) for one in found])
        pixels, labels = (torch.from_numpy(np.stack(part)) for part in ([o.pixels for o in found], [o.labels for o in found]))
        return pixels.to(self.device), labels[:, None].to(self.device), classes.to(self.device)

    def loss(self, net: SyntheticAnomalyNet, pixels: Tensor, labels: Tensor, classes: Tensor | None) -> Tensor:
        """Cross-entropy of each pixel's label, and of the class."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.plan.precision == "bfloat16"):
            seen = net(laid_out(2 * pixels - 1))
        parts = [] if seen.map is None else [functional.binary_cross_entropy_with_logits(seen.map.float(), labels)]
        if seen.classes is not None and classes is not None:
            parts.append(functional.cross_entropy(seen.classes.float(), classes))
        return torch.stack(parts).sum() if parts else pixels.new_tensor(math.nan)

    def step_loss(self, net: SyntheticAnomalyNet, step: int) -> Tensor:
        pixels, labels, classes = (Crew.present().part(some) for some in self.batch(step))
        return self.loss(net, pixels, labels, classes)

    def judged(self, average: SyntheticAnomalyNet) -> tuple[float, float]:
        trial = self.held_out
        held_out = float(self.loss(average, trial.odd.to(self.device), trial.labels.to(self.device), None))
        return held_out, self.judge.area(average, self.device)
