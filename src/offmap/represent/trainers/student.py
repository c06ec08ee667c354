"""A diffusion model, and a student that learns its score: the gate keeps the student alone, which takes one cheap pass."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.encoder import Encoder
from offmap.core.errors import BundleError, ConfigError
from offmap.core.trainer import Event, Examples, Trained
from offmap.represent.diffusion import DiffusionEncoder
from offmap.represent.layers import normalise
from offmap.represent.nets.student import Student, StudentShape
from offmap.represent.student import StudentEncoder
from offmap.represent.train.distil import Teacher, distil
from offmap.represent.train.followed import Followed
from offmap.represent.train.judged import Schedule
from offmap.represent.trainers.diffusion import Diffusion

UNLIKE = 0.7
"""Rank correlation with the teacher below which the card warns."""

SIGNAL = "msma.norms"


@dataclass(frozen=True)
class DistilledDiffusion(Diffusion):
    """Trains the diffusion model first, as ``diffusion`` does, and then a student on what it says of normal and of drawn odd images.

    The teacher's score is the squared Mahalanobis distance of its score norms at ten levels of noise (the signal of ``msma``), with mean
    and covariance of the images that chose its checkpoint.

    Args:
        student_widths: channels of each level of the student; each halves the grid of its map.
        student_steps: optimiser steps of the student.
        variants: odd images that are drawn from each training image for the lesson.

    The others are those of ``diffusion``.
    """

    student_widths: tuple[int, ...] = (16, 32, 64)
    student_steps: int = 2000
    variants: int = 3

    reference: ClassVar[str] = "Hinton et al., Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531 (the idea)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.student_steps < 1 or not 1 <= self.variants <= 30:
            raise ConfigError(f"[train] student_steps = {self.student_steps} must be 1 or more, variants = {self.variants} lie in 1..30")
        if self.size < self._student.stride:
            raise ConfigError(f"[train] size = {self.size} is less than the student's stride, {self._student.stride}: fewer student_widths")

    @property
    def _student(self) -> StudentShape:
        return StudentShape(self.channels, self.axes, self.student_widths)

    def open(self, classes: int, state: Mapping[str, Tensor] | None, *, device: torch.device) -> Encoder:
        if state is None:
            return StudentEncoder(Student(self._student), self.size, device=device)
        try:
            return StudentEncoder.rebuilt({"net": self._student.to_json(), "size": self.size}, state, device=device)
        except BundleError as error:
            raise ConfigError(str(error)) from error

    def train(
        self, data: Examples, *, seed: int, device: torch.device, folder: Path | None = None, progress: Event | None = None
    ) -> Trained:
        places = (None, None) if folder is None else (folder / "teacher", folder / "student")
        taught = super().train(data, seed=seed, device=device, folder=places[0], progress=progress)
        encoder = super().open(0, taught.state, device=device)
        if not isinstance(encoder, DiffusionEncoder):
            raise ConfigError("the teacher of a student must be a diffusion model")
        seen = _scaled(data.images, encoder)
        own = torch.ones(len(seen), dtype=torch.bool)
        own[data.check] = False
        follow = Followed(self.check_every, None, progress, self.steps or 0, "agreement", "student")
        plan = Schedule(steps=self.student_steps, batch=self.batch, rate=self.rate, precision=self.precision, check_every=self.check_every)
        found = distil(
            norm_distance(encoder, seen[data.check]),
            seen[own],
            seen[data.check],
            self._student,
            plan,
            out=places[1],
            variants=self.variants,
            seed=seed,
            device=device,
            resume=True,
            progress=lambda now: follow(replace(now, area=2 * now.area - 1)),
        )
        facts = {**taught.facts, **follow.facts(), "rank_correlation_with_teacher": round(found.agreement, 4)}
        facts["rank_correlation_on_usual_images"] = round(found.usual, 4)
        unlike = f"The student ranks images unlike its teacher: rank correlation {found.agreement:.2f}; give student_steps or variants more"
        words = [*taught.warnings, *found.notes, *([unlike] if found.agreement < UNLIKE else [])]
        return Trained({name: value.detach().cpu() for name, value in found.net.state_dict().items()}, facts, words, taught.sheets)


def _scaled(images: Float[Tensor, "n c *s"], encoder: Encoder) -> Float[Tensor, "n d *s"]:
    """In [0, 1], with the channels that the network has."""
    return (normalise(images, encoder.input) + 1) / 2


def norm_distance(encoder: DiffusionEncoder, usual: Float[Tensor, "n c *s"]) -> Teacher:
    """Squared Mahalanobis distance of the logarithms of score norms from those of usual images, as a teacher."""
    device = next(iter(encoder.state().values())).device

    def norms(images: Tensor) -> Tensor:
        return encoder.encode(images.to(device), frozenset({SIGNAL}))[SIGNAL].double().cpu().clamp_min(1e-12).log()

    rows = torch.cat([norms(part) for part in usual.split(32)])
    mean, centred = rows.mean(dim=0), rows - rows.mean(dim=0)
    covariance = centred.T @ centred / max(1, len(rows) - 1)
    covariance += (0.01 * covariance.diagonal().mean() + 1e-12) * torch.eye(len(covariance), dtype=torch.float64)
    precision = torch.linalg.inv(covariance)

    def teacher(images: Float[Tensor, "n c *s"]) -> Float[Tensor, " n"]:
        away = norms(images) - mean
        distance: Tensor = ((away @ precision) * away).sum(dim=1)
        return distance

    return teacher
