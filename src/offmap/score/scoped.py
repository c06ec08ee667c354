"""SCOPED: how rare the ratio of the score's size to its curvature is."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.detector import State
from offmap.core.errors import ConfigError
from offmap.core.signals import named
from offmap.core.types import Signals
from offmap.score._density import surprises
from offmap.score._noise_levels import NoiseDetector, spread_of


@dataclass(frozen=True, kw_only=True)
class Scoped(NoiseDetector):
    """Largest over levels of ``-log p(T)``, ``T = |s|^2 / tr(ds/dx)``, s the score of the image with noise.

    T is near -1 where the image is typical of the model: under it ``E[|s|^2 + tr ds/dx] = 0`` (Stein). The trace is that of
    ``probes`` random sign fields (Hutchinson). The density of each level is a Gaussian kernel density of in-distribution images,
    standardised; the number is in nats, at least -log of the highest density.

    Needs a diffusion model of the in-distribution images. Scoring takes one pass with a directional derivative a level and probe,
    2F+2J with the defaults, a derivative being about one to two passes more; fitting the same for each held-out image (for all, where
    fewer than 30 are held out); the state is at most 10,000 numbers a level.

    Fails for images that are near the usual ones in both numbers: near chance between related sets of natural images in the paper. A
    trace near 0 is noise; it is kept at a thousandth of that of pure noise at least.

    Args:
        levels: number of levels.
        low: lowest level, deviation of the noise in units of pixels in [-1, 1].
        high: highest level; those between lie in equal ratios.
        probes: random fields for the trace.
        bandwidth: of the kernel, in deviations of T; not given: Scott's ``M^(-1/5)`` for M images.
    """

    levels: int = 2
    low: float = 0.05
    high: float = 1.25
    probes: int = 1
    bandwidth: float | None = None

    passes: ClassVar[str] = "2F+2J"
    reference: ClassVar[str] = "SCOPED, ICLR 2026, OpenReview TMLiG9Rk2J"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.probes <= 1000:
            raise ConfigError(f"scoped: probes = {self.probes} must lie between 1 and 1000")
        if self.bandwidth is not None and not self.bandwidth > 0:
            raise ConfigError(f"scoped: bandwidth = {self.bandwidth} must be positive")

    @property
    def signal(self) -> str:
        return named("scoped.ratios", {"levels": self.levels, "low": self.low, "high": self.high, "probes": self.probes})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        rows = self.unseen(batches, held_out, generator)
        width = self.bandwidth or len(rows) ** (-1 / 5)
        return {"mean": rows.mean(dim=0), "scale": spread_of(rows), "bank": rows, "bandwidth": rows.new_tensor(width)}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        rows = self.rows(signals, len(state["mean"])).to(state["mean"])
        z, bank = (rows - state["mean"]) / state["scale"], (state["bank"] - state["mean"]) / state["scale"]
        return surprises(z, bank, state["bandwidth"]).amax(dim=1)
