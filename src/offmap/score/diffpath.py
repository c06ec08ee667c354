"""DiffPath-6D: how rare the statistics of an image's path into noise are."""

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
from offmap.score._mixture import Covariance, fit_mixture, mixture_surprise
from offmap.score._noise_levels import NoiseDetector


@dataclass(frozen=True, kw_only=True)
class DiffPath(NoiseDetector):
    """``-log p`` of six numbers of the path from the image to noise: sums of e, e^2, e^3 and of its change e', e'^2, e'^3.

    The path is walked without randomness in L Euler steps (DDIM inversion): ``e_l = (x_l - D(x_l, sigma_l)) / sigma_l``,
    ``x_{l+1} = x_l + (sigma_{l+1} - sigma_l) e_l``, ``e'_l = L (e_{l+1} - e_l)``. Sums are taken as means over levels, channels and
    pixels, which the standardisation makes the same. The density is a Gaussian mixture; the number is in nats and may be negative.

    Needs any one diffusion model, best of the in-distribution images; the paper's point is that it may be another's, but a model of
    natural images may not suit medical ones. Scoring takes L passes forward one after the other; fitting the same for each held-out
    image (for all, where fewer than 30 are held out) and a mixture; the state is ``K (6^2 + 6 + 1)`` numbers.

    Fails where images were brought to their size in different ways: the path sees resampling first. Sums over the whole image lose
    small lesions. The paper chooses among up to 100 components, which needs thousands of images.

    Args:
        levels: L, number of levels, 2 or more.
        low: lowest level, deviation of the noise in units of pixels in [-1, 1].
        high: highest level; those between lie in equal ratios.
        components: of the mixture that are tried at most; the information criterion chooses.
        covariance: of a component, ``full`` or ``diag``.
        floor: added to each variance, in squared deviations of the sums.
    """

    components: int = 5
    covariance: Covariance = "diag"
    floor: float = 1e-3

    passes: ClassVar[str] = "10F"
    reference: ClassVar[str] = (
        "Heng et al., Out-of-Distribution Detection with a Single Unconditional Diffusion Model, NeurIPS 2024, arXiv 2405.11881"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.levels < 2:
            raise ConfigError(f"diffpath: levels = {self.levels} must be at least 2")
        if not 1 <= self.components <= 100 or self.covariance not in ("full", "diag") or not 0 < self.floor <= 1:
            raise ConfigError(
                f"diffpath: components = {self.components} (1 to 100), covariance = {self.covariance!r} (full or diag), "
                f"floor = {self.floor} (0 to 1]"
            )

    @property
    def signal(self) -> str:
        return named("diffpath.moments", {"levels": self.levels, "low": self.low, "high": self.high})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        rows = self.unseen(batches, held_out, generator)
        return fit_mixture(rows, most=self.components, covariance=self.covariance, floor=self.floor, generator=generator)

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        return mixture_surprise(state, self.rows(signals, len(state["mean"])))
