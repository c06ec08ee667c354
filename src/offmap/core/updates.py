"""Squared data-consistency updates of posterior samplers, summed over blocks and windows of time while the sampler runs."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError


@dataclass(frozen=True, eq=False)
class UpdateSums:
    """Sums over steps, one for each window of time; memory is ``2 K N`` blocks and does not grow with steps or samples.

    With ``u = mean over samples of |dx|^2`` in a block (squared first, averaged then: the square of the mean would lose what differs
    between samples), ``divergence`` holds ``sum u / (2 g^2 dt)`` and ``relative`` the mean over the window's steps of ``u / g^2``.

    Args:
        steps: T, number of steps that will come.
        windows: K, equal parts of the steps, from the highest noise to the lowest.
        block: pixels on each side of a block.
        divergence: in nats where the updates are steps along the exact likelihood score.
        relative: the form without 1/2 and dt.
    """

    steps: int
    windows: int
    block: int
    divergence: tuple[Float64[Tensor, "n *b"], ...] = ()
    relative: tuple[Float64[Tensor, "n *b"], ...] = ()

    def __post_init__(self) -> None:
        if min(self.steps, self.windows, self.block) < 1 or self.steps % self.windows:
            raise ConfigError(
                f"steps = {self.steps}, windows = {self.windows} and block = {self.block} must be at least 1, "
                "and the steps a multiple of the windows"
            )

    def add(
        self, step: int, update: Float[Tensor, "s n c *t"], *, g: float, dt: float, share: float = 1.0, repeats: int = 1
    ) -> "UpdateSums":
        """The sums with one more update.

        Args:
            step: from 0, the highest noise.
            update: raw change of x by the data, for S samples of N images.
            g: diffusion coefficient of the step.
            dt: its length in time.
            share: weight of the step in the integral as a share of ``g^2 dt``; 1 is the left rule.
            repeats: updates of this step, of which this is one; their squares are averaged.

        Raises:
            ConfigError: no such step, or ``g^2 dt`` is not above 0.
            SignalError: the update is not finite (images named), or the blocks do not fit the image.
        """
        if not 0 <= step < self.steps or not g * g * dt > 0:
            raise ConfigError(f"step = {step} must lie in [0, {self.steps}), and g^2 dt = {g * g * dt} above 0")
        square = update.square().sum(dim=2).double().mean(dim=0)
        bad = (~torch.isfinite(square)).flatten(1).any(dim=1)
        if bool(bad.any()):
            raise SignalError(f"the update of step {step} is not finite for images {bad.nonzero().flatten().tolist()}")
        blocks = block_sums(square, self.block) / (g * g * repeats)
        at, count = step * self.windows // self.steps, self.steps // self.windows
        blank = torch.zeros_like(blocks)
        return replace(
            self,
            divergence=_with(self.divergence or (blank,) * self.windows, at, blocks * (0.5 * share / dt)),
            relative=_with(self.relative or (blank,) * self.windows, at, blocks / count),
        )

    def maps(self, *, relative: bool = False) -> Float64[Tensor, "n k *b"]:
        """One map for each window, ``(N, K, *b)``.

        Raises:
            ConfigError: nothing was added yet.
        """
        parts = self.relative if relative else self.divergence
        if not parts:
            raise ConfigError("no update was added")
        return torch.stack(parts, dim=1)


def block_sums(values: Float[Tensor, "n *s"], block: int) -> Float[Tensor, "n *b"]:
    """Sums over blocks of equal sides, exact: sums of small blocks are those of large ones.

    Raises:
        SignalError: a side is no multiple of ``block``; the message has the blocks that fit.
    """
    sides = values.shape[1:]
    if any(side % block for side in sides):
        fit = [b for b in range(1, min(sides) + 1) if not any(side % b for side in sides)]
        raise SignalError(
            f"an image of {' x '.join(map(str, sides))} cannot be cut into blocks of {block}; blocks of {', '.join(map(str, fit))} fit"
        )
    for axis, side in enumerate(sides, 1):
        values = values.unflatten(axis, (side // block, block)).sum(dim=axis + 1)
    return values


def _with(parts: tuple[Tensor, ...], at: int, value: Tensor) -> tuple[Tensor, ...]:
    return (*parts[:at], parts[at] + value, *parts[at + 1 :])
