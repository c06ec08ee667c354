"""Runs a sampler from noise to images, and keeps the sums of what the data changed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from offmap.core.errors import SignalError
from offmap.core.updates import UpdateSums
from offmap.represent.denoiser import Denoiser
from offmap.represent.operators.contract import Operator
from offmap.represent.posterior.contract import Level, Sampler
from offmap.represent.posterior.patches import PatchPrior

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, eq=False)
class Posterior:
    """What sampling gave.

    Args:
        sums: squared updates over blocks and windows of steps.
        samples: images at the end, ``(S, N, C, H, W)``.
        residual: root mean square of ``y - A x`` over the samples, in deviations of the noise. For a sample of the exact posterior of a
            measurement that the model explains it is 1 on average: ``(x, y)`` is then a draw of the model itself.
        evaluations: passes through the network for each image; a backward pass counts as two.
    """

    sums: UpdateSums
    samples: Float[Tensor, "s n c h w"]
    residual: Float[Tensor, " n"]
    evaluations: int

    @property
    def mean(self) -> Float[Tensor, "n c h w"]:
        """The reconstruction: mean over samples."""
        return self.samples.mean(dim=0)


class ImageDraws:
    """Noise from one generator an image, seeded with its content; drawn on the CPU, so that it is the same on any device."""

    def __init__(self, seeds: Sequence[int], samples: int, shape: Sequence[int], like: Tensor) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._samples, self._shape, self._like = samples, tuple(shape), like

    def normal(self) -> Float[Tensor, "m c h w"]:
        """As of ``Draws``; samples first, then images."""
        drawn = [torch.randn(self._samples, *self._shape, generator=g) for g in self._generators]
        return torch.stack(drawn, dim=1).flatten(0, 1).to(self._like)

    def shared(self) -> Float[Tensor, "m c h w"]:
        """As of ``Draws``."""
        drawn = torch.stack([torch.randn(self._shape, generator=g) for g in self._generators])
        return drawn.repeat(self._samples, 1, 1, 1).to(self._like)

    def places(self, limit: int) -> Int64[Tensor, "m 2"]:
        """Whole numbers from 0 to ``limit - 1``, two for each sample."""
        drawn = [torch.randint(limit, (self._samples, 2), generator=g) for g in self._generators]
        return torch.stack(drawn, dim=1).flatten(0, 1)


def sample(
    denoiser: Denoiser | PatchPrior,
    y: Float[Tensor, "n c *k"],
    operator: Operator,
    sampler: Sampler,
    *,
    size: tuple[int, int],
    seeds: Sequence[int],
    windows: int = 20,
    block: int = 4,
    share: int = 64,
    precision: Precision = "float32",
) -> Posterior:
    """Draw ``sampler.samples`` images for each measurement, all at once.

    Sums use the trapezoidal rule over ``sigma^2``: a step's square stands for half of its own length and half of the one before.

    Args:
        size: height and width of the images.
        seeds: one for each image, from its content.
        windows: equal parts of the steps.
        block: side of a block in pixels.
        share: samples that pass through the network at once.
        precision: of the passes through the network; ``bfloat16`` is about twice as fast on processors and cards that have it in hardware.
            All else, the operator and the sums among it, stays in the measurement's precision.

    Raises:
        SignalError: the measurement does not fit or is not finite, the image cannot be cut into the blocks, or samples run away.
    """
    operator.check(y, size)
    count, shape = len(y), (int(y.shape[1]), *size)
    draws = ImageDraws(seeds, sampler.samples, shape, y)
    levels = sampler.levels()
    repeated = y.repeat(sampler.samples, *[1] * (y.ndim - 1))
    x = levels[0].sigma * draws.normal()
    if sampler.start == "inverse":
        x = x + operator.reconstruct(y, size).repeat(sampler.samples, 1, 1, 1)
    sums, evaluations, before = UpdateSums(sampler.steps, windows, block), 0, 0.0
    for level in levels:
        placed = denoiser.at(draws.places(denoiser.patch)) if isinstance(denoiser, PatchPrior) else denoiser
        with torch.no_grad():
            done = sampler.step(_few(placed, share, half=precision == "bfloat16"), x, level, repeated, operator, draws)
        x, evaluations = done.x, evaluations + done.evaluations
        g, dt = sampler.clock(level)
        weight = _weight(level, before, last=level.index == sampler.steps - 1)
        for update in done.updates:
            own = update.unflatten(0, (sampler.samples, count))
            sums = sums.add(level.index, own, g=g, dt=dt, share=weight, repeats=len(done.updates))
        before = level.length
    _tame(x, count)
    residual = (repeated - operator.forward(x)).unflatten(0, (sampler.samples, count)).transpose(0, 1).flatten(1)
    off = residual.double().square().mean(dim=1).sqrt() / operator.noise
    return Posterior(sums, x.unflatten(0, (sampler.samples, count)), off.float(), sampler.samples * evaluations)


def _weight(level: Level, before: float, *, last: bool) -> float:
    """Weight of a step in the integral over ``sigma^2``, as a share of its own length."""
    own = level.length if last else 0.5 * level.length
    return (own + 0.5 * before) / level.length


def _few(denoiser: Denoiser, share: int, *, half: bool) -> Denoiser:
    """The same, a few images at a time (not when patches tie the images of a call together), in bfloat16 where that is asked for."""
    at_once = math.inf if isinstance(denoiser, PatchPrior) else share

    def parts(x: Float[Tensor, "n c *s"], sigma: Float[Tensor, " n"]) -> Float[Tensor, "n c *s"]:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            if len(x) <= at_once:
                return denoiser(x, sigma).to(x.dtype)
            return torch.cat([denoiser(a, b).to(x.dtype) for a, b in zip(x.split(share), sigma.split(share), strict=True)])

    return parts


def _tame(x: Float[Tensor, "m c h w"], count: int) -> None:
    wild = (~torch.isfinite(x)).flatten(1).any(dim=1).nonzero().flatten()
    if len(wild):
        raise SignalError(
            f"samples of images {sorted({int(i) % count for i in wild})} ran away: their steps are too large for this operator; "
            "lower strength, or use guidance = matched"
        )
