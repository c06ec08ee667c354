"""Training of an adversarial model on normal images: first generator against critic, then the encoder into the generator's codes.

Hinge loss with spectral norms (Miyato et al., ICLR 2018, 1802.05957); the encoder's loss is ``izi_f`` of Schlegl et al., f-AnoGAN, 2019.
The checkpoint is chosen without labels, on drawn anomalies.
"""

import copy
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from offmap.core.errors import ConfigError
from offmap.represent.device import resolve_device
from offmap.represent.digest import tensors_sha256
from offmap.represent.nets.gan import AdversarialModel, GANShape, code_loss
from offmap.represent.train import checkpoint
from offmap.represent.train.judged import JudgedRun, Schedule, State, Watch
from offmap.represent.train.normal_images import divided, notes_on, require_usable
from offmap.represent.train.parallel import Crew
from offmap.represent.train.planted import Trial

BETAS = {"generator": (0.0, 0.9), "critic": (0.0, 0.9), "encoder": (0.9, 0.999)}
"""Of AdamW, for each network."""


@dataclass(frozen=True)
class GANPlan(Schedule):
    """How an adversarial model is trained.

    The learning rate is that of the encoder; generator and critic take ``adversarial_rate``, which does not fall. Checkpoints begin with
    the encoder.

    Args:
        size: side of the images in pixels.
        widths, latent: channels of each level, and numbers in a code.
        encoding: share of the run that trains the encoder, after the generator and the critic.
        adversarial_rate: learning rate of generator and critic.
        kappa: weight of the critic's features in the encoder's loss and in the choice of the checkpoint.

    The others are those of ``Schedule``.
    """

    clip: float = 10.0
    check_every: int = 200

    size: int = 64
    widths: tuple[int, ...] = (32, 64, 128, 128)
    latent: int = 64
    encoding: float = 0.4
    adversarial_rate: float = 2e-4
    kappa: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.encoding < 1 or not 0 < self.adversarial_rate < math.inf or not 0 <= self.kappa < math.inf:
            raise ConfigError(
                f"encoding = {self.encoding} must lie in (0, 1), adversarial_rate = {self.adversarial_rate} be positive, "
                f"kappa = {self.kappa} 0 or more"
            )
        self.shape(1, 2)

    def shape(self, channels: int, axes: int) -> GANShape:
        """Architecture for such images."""
        return GANShape(self.size, channels, axes, self.widths, self.latent)

    def encodes(self, step: int, seconds: float) -> bool:
        """Whether the encoder is due."""
        return self.done(step, seconds) >= 1 - self.encoding

    def rate_at(self, step: int, seconds: float) -> float:
        left = (1 - self.done(step, seconds)) / self.encoding
        return self.rate * 0.5 * (1 - math.cos(math.pi * min(1.0, left)))


@dataclass(frozen=True, slots=True, eq=False)
class TrainedGAN:
    """What a run gave.

    Args:
        model: running means of generator and encoder at the checkpoint that was kept, on the CPU, in eval mode.
        steps: taken.
        kept: step of that checkpoint.
        area: AUROC of the f-AnoGAN score, held-out images against the same with drawn anomalies.
        rate: images a second, over all sittings.
        notes: for people: why it ended early, few images.
    """

    model: AdversarialModel
    steps: int
    kept: int
    area: float
    rate: float
    notes: tuple[str, ...]


def train_gan(
    images: Float[Tensor, "n c *s"],
    plan: GANPlan,
    *,
    out: Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    resume: bool = False,
    held_out: Int64[Tensor, " m"] | None = None,
    progress: Watch | None = None,
) -> TrainedGAN:
    """Train on normal images.

    Args:
        images: prepared, in [0, 1]; with two axes of space, or three.
        out: folder for the checkpoint and ``log.jsonl``; nothing is written where there is none.
        seed: of weights, division, batches and codes.
        resume: go on from the checkpoint in ``out`` if there is one.
        held_out: rows that judge checkpoints and train nothing; drawn where not given.
        progress: told of each step.

    Raises:
        DataError: fewer than 16 images, all of one value, or some that are not finite (rows named).
        ConfigError: images of another size, a checkpoint of another run or one that cannot be written, or a loss that is not
            finite before the first checkpoint.
        NotAvailableError: the device is missing.
    """
    require_usable(images, "an adversarial model")
    if any(n != plan.size for n in images.shape[2:]):
        raise ConfigError(f"images of shape {tuple(images.shape)} do not have sides of size = {plan.size}")
    run = _Run.of(images, plan, seed, resolve_device(device), held_out)
    identity = {
        "plan": {k: v for k, v in asdict(plan).items() if k != "patience"},
        "seed": seed,
        "images": tensors_sha256({"images": images, "rows": torch.empty(0) if held_out is None else held_out}),
    }
    state = run.begin()
    notes = notes_on(len(images), "generator") + run.sit(state, out, identity, resume=resume, progress=progress)
    rate = state.step * plan.batch / max(state.seconds, 1e-9)
    return TrainedGAN(state.exported(), state.step, state.kept, state.best_area, rate, tuple(notes))


@dataclass(frozen=True, slots=True, eq=False)
class _Run(JudgedRun[AdversarialModel]):
    plan: GANPlan
    seed: int
    train: Tensor
    trial: Trial
    device: torch.device
    criterion: str = "drawn anomalies"

    @classmethod
    def of(cls, images: Tensor, plan: GANPlan, seed: int, device: torch.device, rows: Tensor | None = None) -> "_Run":
        """Divide the images, draw anomalies into the held-out ones."""
        train, held_out, _ = divided(images, plan.held_out, seed, rows)
        return cls(plan, seed, 2 * train - 1, Trial.of(held_out, seed), device)

    def begin(self) -> State[AdversarialModel]:
        """Weights drawn, optimiser empty."""
        shape = self.plan.shape(int(self.train.shape[1]), self.train.ndim - 2)
        net = AdversarialModel(shape, generator=self.generator((1 << 31) - 1)).to(self.device)
        net = net.to(memory_format=torch.channels_last) if shape.axes == 2 else net  # type: ignore[call-overload]
        groups = [{"params": list(getattr(net, name).parameters()), "betas": betas} for name, betas in BETAS.items()]
        return State(net, copy.deepcopy(net).requires_grad_(False), torch.optim.AdamW(groups, lr=self.plan.rate, weight_decay=0.0))

    def step(self, state: State[AdversarialModel]) -> float:
        rng = self.generator(state.step)
        x = Crew.present().part(self.train[torch.randint(len(self.train), (self.plan.batch,), generator=rng)]).to(self.device)
        x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
        encodes = self.plan.encodes(state.step, state.seconds)
        value = self._encode(state, x) if encodes else self._compete(state, x, rng)
        state.step += not math.isnan(value)
        return value

    def judged(self, average: AdversarialModel) -> tuple[float, float]:
        """The encoder's loss on held-out images, and the AUROC of the f-AnoGAN score."""
        average.eval()
        found = code_loss(average, (2 * self.trial.normal - 1).to(self.device), self.plan.kappa)
        return float((found[1] + self.plan.kappa * found[2]).mean()), self.trial.area_of(lambda x: self._score(average, x), self.device)

    def check(self, state: State[AdversarialModel]) -> tuple[float, float]:
        if not self.plan.encodes(state.step - 1, state.seconds):
            return math.nan, math.nan
        return JudgedRun.check(self, state)

    def _score(self, model: AdversarialModel, x: Tensor) -> Tensor:
        _, pixels, features = code_loss(model, x, self.plan.kappa)
        return pixels + self.plan.kappa * features

    def _compete(self, state: State[AdversarialModel], real: Tensor, rng: torch.Generator) -> float:
        """One step of the critic, one of the generator; the critic's loss."""
        own = state.net.train()
        codes = [Crew.present().normal((len(real), self.plan.latent), rng).to(self.device) for _ in range(2)]
        with self._cast():
            with torch.no_grad():
                made = own.generator(codes[0])
            loss = functional.relu(1 - own.critic(real).float()).mean() + functional.relu(1 + own.critic(made).float()).mean()
        value = self._descend(state, "critic", loss, self.plan.adversarial_rate)
        with self._cast():
            fooled = -own.critic(own.generator(codes[1])).float().mean()
        if math.isnan(value) or math.isnan(self._descend(state, "generator", fooled, self.plan.adversarial_rate)):
            return math.nan
        checkpoint.follow(state.average.generator, own.generator, self.plan.average, state.step + 1)
        state.average.critic.load_state_dict(own.critic.state_dict())
        return value

    def _encode(self, state: State[AdversarialModel], x: Tensor) -> float:
        """One step of the encoder, for the generator's running mean and the critic as they are; its loss."""
        model, encoder = state.average.eval(), state.net.encoder.train()
        with self._cast():
            back = model.generator(encoder(x))
            loss = (x - back.float()).square().mean()
            if self.plan.kappa > 0:
                loss = loss + self.plan.kappa * (model.critic.features(x) - model.critic.features(back)).float().square().mean()
        value = self._descend(state, "encoder", loss, self.plan.rate_at(state.step, state.seconds))
        if not math.isnan(value):
            first = state.optimiser.state[encoder.last.weight]["step"]
            checkpoint.follow(model.encoder, encoder, self.plan.average, int(first))
        return value

    def _cast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.plan.precision == "bfloat16")

    def _descend(self, state: State[AdversarialModel], name: str, loss: Tensor, rate: float) -> float:
        """One step of one network's weights; NaN where none could be made."""
        crew = Crew.present()
        value = crew.mean(float(loss.detach()), loss.device)
        if not math.isfinite(value):
            return math.nan
        weights = list(getattr(state.net, name).parameters())
        state.optimiser.zero_grad()
        for weight, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.grad = slope
        crew.average(weights)
        if not bool(torch.isfinite(torch.nn.utils.clip_grad_norm_(weights, self.plan.clip))):
            return math.nan
        for group in state.optimiser.param_groups:
            group["lr"] = rate
        state.optimiser.step()
        return value
