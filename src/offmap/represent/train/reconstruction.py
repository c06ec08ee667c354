"""Training of networks that restore images, on normal images; the checkpoint is chosen without labels, on drawn anomalies."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from offmap.represent.device import resolve_device
from offmap.represent.digest import tensors_sha256
from offmap.represent.nets.autoencoder import Autoencoder, autoencoder
from offmap.represent.train.judged import DescentRun, State, Watch
from offmap.represent.train.normal_images import divided, notes_on, require_usable
from offmap.represent.train.objectives import ReconstructionPlan
from offmap.represent.train.parallel import ALONE, Crew
from offmap.represent.train.planted import Trial


@dataclass(frozen=True, slots=True, eq=False)
class TrainedAutoencoder:
    """What a run gave.

    Args:
        net: running mean of the weights at the checkpoint that was kept, on the CPU, in eval mode.
        steps: taken.
        kept: step of that checkpoint.
        area: AUROC of its oddness, held-out images against the same with drawn anomalies.
        rate: images a second, over all sittings.
        notes: for people: why it ended early, few images.
    """

    net: Autoencoder
    steps: int
    kept: int
    area: float
    rate: float
    notes: tuple[str, ...]


def train_reconstruction(
    images: Float[Tensor, "n c *s"],
    plan: ReconstructionPlan,
    *,
    out: Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    resume: bool = False,
    held_out: Int64[Tensor, " m"] | None = None,
    progress: Watch | None = None,
) -> TrainedAutoencoder:
    """Train on normal images.

    Args:
        images: prepared, in [0, 1]; with two axes of space, or three, of any size from the network's stride on.
        plan: which network, and how.
        out: folder for the checkpoint and ``log.jsonl``; nothing is written where there is none.
        seed: of weights, division, batches and noise.
        resume: go on from the checkpoint in ``out`` if there is one.
        held_out: rows that judge checkpoints and train nothing; drawn where not given.
        progress: told of each step.

    Raises:
        DataError: fewer than 16 images, all of one value, or some that are not finite (rows named).
        ConfigError: images smaller than the stride, a checkpoint of another run or one that cannot be written, or a loss that is not
            finite before the first checkpoint.
        NotAvailableError: MONAI or the device is missing.
    """
    require_usable(images, "an autoencoder")
    run = _Run.of(images, plan, seed, resolve_device(device), held_out)
    identity = {
        "plan": {"kind": plan.kind, **{k: v for k, v in asdict(plan).items() if k != "patience"}},
        "seed": seed,
        "images": tensors_sha256({"images": images, "rows": torch.empty(0) if held_out is None else held_out}),
    }
    state = run.begin()
    notes = notes_on(len(images), "network") + run.sit(state, out, identity, resume=resume, progress=progress)
    rate = state.step * plan.batch / max(state.seconds, 1e-9)
    return TrainedAutoencoder(state.exported(), state.step, state.kept, state.best_area, rate, tuple(notes))


@dataclass(frozen=True, slots=True, eq=False)
class _Run(DescentRun[Autoencoder]):
    plan: ReconstructionPlan
    seed: int
    train: Tensor
    trial: Trial
    device: torch.device
    criterion: str = "drawn anomalies"

    @classmethod
    def of(cls, images: Tensor, plan: ReconstructionPlan, seed: int, device: torch.device, rows: Tensor | None = None) -> "_Run":
        """Divide the images, draw anomalies into the held-out ones."""
        train, held_out, _ = divided(images, plan.held_out, seed, rows)
        return cls(plan, seed, train, Trial.of(held_out, seed), device)

    def begin(self) -> State[Autoencoder]:
        """Weights drawn, optimiser empty."""
        shape = self.plan.shape(int(self.train.shape[1]), tuple(self.train.shape[2:]))
        net = autoencoder(shape, generator=self.generator((1 << 31) - 1)).to(self.device)
        net = net.to(memory_format=torch.channels_last) if shape.axes == 2 else net  # type: ignore[call-overload]
        self.plan.prepare(net)
        return State.fresh(net, self.plan)

    def loss(self, net: Autoencoder, clean: Tensor, rng: torch.Generator, crew: Crew = ALONE) -> Tensor:
        """Mean of the plan's losses."""
        x = clean.to(self.device)
        x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.plan.precision == "bfloat16"):
            mean: Tensor = self.plan.losses(net, x, rng, crew).float().mean()
        return mean

    def step_loss(self, net: Autoencoder, step: int) -> Tensor:
        rng = self.generator(step)
        return self.loss(net, self.train[torch.randint(len(self.train), (self.plan.batch,), generator=rng)], rng, Crew.present())

    def judged(self, average: Autoencoder) -> tuple[float, float]:
        self.plan.settle(average, self.trial.normal.to(self.device))
        held_out = float(self.loss(average, self.trial.normal, self.generator(1 << 31)))
        return held_out, self.trial.area_of(lambda x: self.plan.oddness(average, (x + 1) / 2), self.device)
