"""Training of the codec of a latent diffusion model on normal images."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.represent.digest import tensors_sha256
from offmap.represent.nets.latent import Codec, CodecShape
from offmap.represent.train.judged import DescentRun, Schedule, State, Watch
from offmap.represent.train.parallel import ALONE, Crew
from offmap.represent.train.planted import MOST


@dataclass(frozen=True)
class CodecPlan(Schedule):
    """How the codec is trained: as in ``Schedule``, and

    Args:
        kl: weight of the codes' divergence from a standard normal law, for each number of a code; the mean absolute error of pixels in
            [-1, 1] has the weight 1.
    """

    kl: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.kl < math.inf:
            raise ConfigError(f"kl = {self.kl} must be 0 or more")


@dataclass(frozen=True, slots=True, eq=False)
class TrainedCodec:
    """What a run gave.

    Args:
        net: running mean of the weights at the checkpoint of the least held-out loss, on the CPU, in eval mode.
        error: mean absolute error of held-out pixels in [-1, 1].
        notes: why it ended early.
    """

    net: Codec
    error: float
    notes: tuple[str, ...]


def train_codec(
    images: Float[Tensor, "n c *s"],
    held_out: Float[Tensor, "m c *s"],
    shape: CodecShape,
    plan: CodecPlan,
    *,
    out: Path | None = None,
    seed: int = 0,
    device: torch.device,
    resume: bool = False,
    progress: Watch | None = None,
) -> TrainedCodec:
    """Train on normal images in [-1, 1]; the checkpoint with the least loss on the held-out ones (of volumes, the first 32) is kept.

    Args:
        out: folder for the checkpoint and ``log.jsonl``; nothing is written where there is none.
        resume: go on from the checkpoint in ``out`` if there is one.

    Raises:
        ConfigError: a checkpoint of another run or one that cannot be written, or a loss that is not finite before the first one.
        NotAvailableError: MONAI is missing.
    """
    held_out = held_out if held_out.ndim == 4 else held_out[: MOST[3]]
    run = _Run(plan, seed, images, held_out, device)
    state = State.fresh(Codec(shape, generator=run.generator((1 << 31) - 1)).to(device), plan)
    identity = {
        "plan": {k: v for k, v in asdict(plan).items() if k != "patience"},
        "network": shape.to_json(),
        "seed": seed,
        "images": tensors_sha256({"images": images, "held_out": held_out}),
    }
    notes = run.sit(state, out, identity, resume=resume, progress=progress)
    net = state.exported()
    net.settle(images)
    with torch.no_grad():
        error = float((net.restored(net.posterior(held_out)[0], tuple(held_out.shape[2:])) - held_out).abs().mean())
    return TrainedCodec(net, error, tuple(notes))


def losses(net: Codec, x: Float[Tensor, "n c *s"], kl: float, rng: torch.Generator, crew: Crew = ALONE) -> Float[Tensor, " n"]:
    """``mean |x - D(z)| + kl mean KL(q(z|x) | N(0, 1))``, z drawn from the posterior q; ``x`` is this process's part."""
    mean, deviation = net.posterior(x)
    noise = crew.normal(mean.shape, rng).to(mean)
    back = net.restored(mean + deviation * noise, tuple(x.shape[2:]))
    divergence = 0.5 * (mean.square() + deviation.square() - 2 * deviation.log() - 1)
    return (back.float() - x).abs().flatten(1).mean(dim=1) + kl * divergence.float().flatten(1).mean(dim=1)


@dataclass(frozen=True, slots=True, eq=False)
class _Run(DescentRun[Codec]):
    plan: CodecPlan
    seed: int
    train: Tensor
    held_out: Tensor
    device: torch.device
    criterion: str = "held-out images"

    def loss(self, net: Codec, clean: Tensor, rng: torch.Generator, crew: Crew = ALONE) -> Tensor:
        x = crew.part(clean).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.plan.precision == "bfloat16"):
            mean: Tensor = losses(net, x, self.plan.kl, rng, crew).mean()
        return mean

    def step_loss(self, net: Codec, step: int) -> Tensor:
        rng = self.generator(step)
        return self.loss(net, self.train[torch.randint(len(self.train), (self.plan.batch,), generator=rng)], rng, Crew.present())

    def judged(self, average: Codec) -> tuple[float, float]:
        """The share of the pixels' range that is restored stands for the area."""
        held_out = float(self.loss(average, self.held_out, self.generator(1 << 31)))
        return held_out, math.exp(-held_out)
