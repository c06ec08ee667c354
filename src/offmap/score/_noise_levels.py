"""What methods share that read numbers of a diffusion model at several levels of noise."""

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.types import Signals
from offmap.score._bank import sampled

ENOUGH = 30
"""Held-out images from which on statistics are theirs alone."""

MAX_BANK = 10_000
"""Images of which statistics are made at most; a uniform sample of more."""


@dataclass(frozen=True, kw_only=True)
class NoiseDetector(Detector):
    """Reads one signal of a diffusion model, made at ``levels`` deviations of noise from ``low`` to ``high`` in equal ratios.

    Args:
        levels: number of levels.
        low: lowest level, deviation of the noise in units of pixels in [-1, 1].
        high: highest level; those between lie in equal ratios.
    """

    levels: int = 10
    low: float = 0.02
    high: float = 10.0

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= 1000:
            raise ConfigError(f"{self.method()}: levels = {self.levels} must lie between 1 and 1000")
        if not 0 < self.low <= self.high < float("inf"):
            raise ConfigError(f"{self.method()}: low = {self.low} and high = {self.high} must be 0 < low <= high")

    @property
    @abstractmethod
    def signal(self) -> str:
        """Name of what is read."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.signal})

    def rows(self, signals: Signals, width: int | None = None) -> Float64[Tensor, "n l"]:
        """The signal as (N, L) in float64.

        Raises:
            SignalError: it is of another shape, or has not ``width`` numbers.
        """
        found = signals[self.signal].double()
        found = found[:, None] if found.ndim == 1 else found
        if found.ndim != 2 or found.shape[1] == 0 or (width is not None and found.shape[1] != width):
            raise SignalError(
                f"{self.method()}: {self.signal} of shape {tuple(found.shape)} must be (N, {'L' if width is None else width})"
            )
        return found

    def unseen(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> Float64[Tensor, "m l"]:
        """Rows to make statistics of: the held-out ones, where there are 30 or more, since the model may know the others by heart."""
        own = None if held_out is None else sampled(held_out, self.rows, MAX_BANK, generator)
        if own is not None and len(own) >= ENOUGH:
            return own
        rest = sampled(batches, self.rows, MAX_BANK, generator)
        rows = rest if own is None or not len(own) else torch.cat([rest, own.to(rest)])
        if len(rows) < 2 or bool((rows == rows[0]).all()):
            raise SignalError(f"{self.method()}: the {len(rows)} images do not differ: at least two different images are needed")
        return rows


@dataclass(frozen=True, kw_only=True)
class LevelsDetector(NoiseDetector):
    """Mean over levels of ``(m - mean) / deviation``, both of in-distribution images.

    Args:
        levels: number of levels.
        low: lowest level, deviation of the noise in units of pixels in [-1, 1].
        high: highest level; those between lie in equal ratios.
    """

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        rows = self.unseen(batches, held_out, generator)
        return {"mean": rows.mean(dim=0), "spread": spread_of(rows)}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        rows = self.rows(signals, len(state["mean"])).to(state["mean"])
        return ((rows - state["mean"]) / state["spread"]).mean(dim=1)


def spread_of(rows: Float64[Tensor, "n d"]) -> Float64[Tensor, " d"]:
    """Deviation of each column, at least a millionth of its size; of one that is 0 everywhere, 1."""
    spread = rows.std(dim=0, correction=0)
    least = 1e-6 * rows.abs().amax(dim=0)
    spread = torch.maximum(spread, least)
    return torch.where(spread > 0, spread, 1.0)
