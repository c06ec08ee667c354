"""A student learns the score of an expensive teacher, on normal images and on odd ones that are drawn from them."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.errors import DataError, SignalError
from offmap.represent.digest import tensors_sha256
from offmap.represent.layers import LUMA
from offmap.represent.nets.student import Student, StudentShape
from offmap.represent.proxy import phantom
from offmap.represent.train.judged import DescentRun, Schedule, State, Watch
from offmap.represent.train.parallel import Crew
from offmap.represent.train.planted import LESIONS
from offmap.simulate.anomalies import ANOMALIES
from offmap.simulate.corruptions import CORRUPTIONS, corrupt
from offmap.simulate.lesions import plant_lesion
from offmap.simulate.phantom_families import FOREIGN

Teacher = Callable[[Float[Tensor, "n c *s"]], Float[Tensor, " n"]]
"""Scores of prepared images in [0, 1], higher = more OOD."""

CHUNK = 32
"""Images at a time."""

PHANTOMS = 16
"""Of each family."""

LOCAL = ("lesion", *ANOMALIES)
PLAIN = tuple(name for name in ("noise", "blur", "contrast", "gamma", "bias_field", "downsampling", "stripes") if name in CORRUPTIONS)


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """Images and what the teacher says of them.

    Args:
        images: in [-1, 1]: the normal ones first, then ``odd`` variants of each.
        targets: ``sign(z) log(1 + |z|)`` of the teacher's score, z in deviations (1.4826 MAD) from its median on the normal ones.
    """

    images: Float[Tensor, "n c *s"]
    targets: Float[Tensor, " n"]


@dataclass(frozen=True, slots=True, eq=False)
class Distilled:
    """What a run gave.

    Args:
        net: running mean of the weights at the checkpoint that was kept, on the CPU, in eval mode.
        agreement: rank correlation with the teacher on held-out images and their variants.
        usual: the same on held-out images as they are.
        notes: why it ended early.
    """

    net: Student
    agreement: float
    usual: float
    notes: tuple[str, ...]


def distil(
    teacher: Teacher,
    images: Float[Tensor, "n c *s"],
    held_out: Float[Tensor, "m c *s"],
    shape: StudentShape,
    plan: Schedule,
    *,
    out: Path | None = None,
    variants: int = 3,
    seed: int = 0,
    device: torch.device | str = "cpu",
    resume: bool = False,
    progress: Watch | None = None,
) -> Distilled:
    """Train a student of any teacher; the checkpoint that ranks held-out images most like it is kept.

    Args:
        teacher: called once for each image and variant.
        images, held_out: normal images in [0, 1].
        out: folder for the checkpoint and ``log.jsonl``; nothing is written where there is none.
        variants: odd ones that are drawn from each image: a local anomaly, a corruption, and one mixed with or replaced by another kind of
            picture, in turn.
        resume: go on from the checkpoint in ``out`` if there is one; the teacher is asked again.
        progress: told of each step; its area is the rank correlation, moved to [0, 1].

    Raises:
        DataError: too few images, or the teacher gives all of them the same score.
        SignalError: a teacher's score is not finite.
        ConfigError: a checkpoint of another run or one that cannot be written, or a loss that is not finite before the first one.
    """
    if len(images) < 4 or len(held_out) < 4:
        raise DataError(f"{len(images)} images to learn from and {len(held_out)} to be judged on: four of each are the least")
    law = _law(teacher, images)
    lesson, trial = (lesson_of(teacher, some, law, variants, seed + i) for i, some in enumerate((images, held_out)))
    run = _Run(plan, seed, lesson, trial, torch.device(device))
    state = State.fresh(Student(shape, generator=run.generator((1 << 31) - 1)).to(run.device), plan)
    identity = {
        "plan": {k: v for k, v in asdict(plan).items() if k != "patience"},
        "network": shape.to_json(),
        "seed": seed,
        "variants": variants,
        "images": tensors_sha256({"images": images, "held_out": held_out}),
        "teacher": [f"{value:.3g}" for value in law],
    }
    notes = run.sit(state, out, identity, resume=resume, progress=progress)
    net = state.exported()
    found = given(net, trial.images, torch.device("cpu"))
    m = len(held_out)
    return Distilled(net, rank_correlation(found, trial.targets), rank_correlation(found[:m], trial.targets[:m]), tuple(notes))


def lesson_of(teacher: Teacher, images: Float[Tensor, "n c *s"], law: tuple[float, float], variants: int, seed: int) -> Lesson:
    """The images and their variants, with the teacher's word on each."""
    rng = np.random.default_rng(seed)
    odd = [varied(images[i], images[i - 1], k, rng) for k in range(variants) for i in range(len(images))]
    every = torch.cat([images.float().cpu(), *([torch.stack(odd)] if odd else [])])
    z = (_asked(teacher, every) - law[0]) / law[1]
    return Lesson(2 * every - 1, (z.sign() * z.abs().log1p()).float())


def varied(image: Float[Tensor, "c *s"], other: Float[Tensor, "c *s"], kind: int, rng: np.random.Generator) -> Float[Tensor, "c *s"]:
    """One odd variant in [0, 1]; of volumes, always a local one."""
    pixels = np.ascontiguousarray(image.float().cpu().clamp(0, 1).numpy())
    if kind % 3 == 0 or pixels.ndim == 4:
        name = LOCAL[rng.integers(len(LOCAL))]
        if name == "lesion":
            return torch.from_numpy(plant_lesion(pixels, rng=rng, ranges=LESIONS).pixels)
        return torch.from_numpy(ANOMALIES[name](pixels, np.ascontiguousarray(other.float().cpu().numpy()), rng=rng).pixels)
    if kind % 3 == 1:
        name = PLAIN[rng.integers(len(PLAIN))]
        return torch.from_numpy(corrupt(pixels, name, severity=int(rng.integers(1, 6)), seed=int(rng.integers(2**31))))
    foreign = phantom(tuple(FOREIGN)[rng.integers(len(FOREIGN))], int(rng.integers(PHANTOMS)), *pixels.shape[-2:])
    grey = torch.tensordot(torch.tensor(LUMA), foreign, dims=1)[None] if len(foreign) == 3 else foreign
    share = float(rng.choice([0.0, 0.25, 0.5, 0.75]))
    return share * torch.from_numpy(pixels) + (1 - share) * grey.expand(len(pixels), -1, -1)


def given(net: Student, images: Float[Tensor, "n c *s"], device: torch.device) -> Float[Tensor, " n"]:
    """The student's scores of images in [-1, 1]."""
    with torch.no_grad():
        return torch.cat([net(part.to(device)).flatten(1).mean(dim=1).cpu() for part in images.split(4 * CHUNK)])


def rank_correlation(one: Float[Tensor, " n"], other: Float[Tensor, " n"]) -> float:
    """Spearman's; 0 where one of them is constant."""
    from scipy.stats import rankdata

    a, b = (torch.from_numpy(rankdata(x.double().numpy())) for x in (one, other))
    a, b = a - a.mean(), b - b.mean()
    size = float(a.norm() * b.norm())
    return float((a * b).sum()) / size if size > 0 else 0.0


def _law(teacher: Teacher, images: Tensor) -> tuple[float, float]:
    from offmap.core.robust import centre_and_spread

    scores = _asked(teacher, images)
    if float(scores.max() - scores.min()) <= 0:
        raise DataError(f"the teacher gives all {len(images)} images the same score: there is nothing to learn")
    return centre_and_spread(scores.float())


def _asked(teacher: Teacher, images: Tensor) -> Float[Tensor, " n"]:
    scores = torch.cat([teacher(part).detach().cpu().double() for part in images.split(CHUNK)])
    if not bool(torch.isfinite(scores).all()):
        raise SignalError(f"the teacher's score is not finite in rows {torch.nonzero(~torch.isfinite(scores)).flatten().tolist()[:8]}")
    return scores


@dataclass(frozen=True, slots=True, eq=False)
class _Run(DescentRun[Student]):
    plan: Schedule
    seed: int
    lesson: Lesson
    trial: Lesson
    device: torch.device
    criterion: str = "the teacher's ranks"

    def loss(self, net: Student, images: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.plan.precision == "bfloat16"):
            found = net(images.to(self.device)).flatten(1).mean(dim=1)
        mean: Tensor = (found.float() - targets.to(self.device)).square().mean()
        return mean

    def step_loss(self, net: Student, step: int) -> Tensor:
        rows = Crew.present().part(torch.randint(len(self.lesson.images), (self.plan.batch,), generator=self.generator(step)))
        return self.loss(net, self.lesson.images[rows], self.lesson.targets[rows])

    def judged(self, average: Student) -> tuple[float, float]:
        found = given(average, self.trial.images, self.device)
        agreement = rank_correlation(found, self.trial.targets)
        error = float((found - self.trial.targets).square().mean())
        return error, (1 + agreement) / 2 if math.isfinite(error) else 0.0
