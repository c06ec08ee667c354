"""Norms of a diffusion model's score at several levels of noise, and how rare they are together."""

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
class MSMA(NoiseDetector):
    """Multiscale score matching analysis: ``-log p(n_1, ..., n_L)`` of ``n_l = |x_l - D(x_l, sigma_l)| / (sigma_l sqrt(d))``.

    ``x_l = x + sigma_l noise``; ``n_l`` is the norm of the score in units of what pure noise has, near 1 where the model explains the
    image. The density is a Gaussian mixture of the norms, standardised; the number is in nats, may be negative, and higher = more OOD:
    norms that are too small are as odd as ones that are too large.

    Needs a diffusion model of the in-distribution images. Scoring takes L passes forward, no gradient; fitting the same for each
    held-out image (for all, where fewer than 30 are held out) and a mixture; the state is ``K (L^2 + L + 1)`` numbers.

    Fails where an odd image is as easy to denoise as the usual ones at every level: small lesions in large images hardly change a norm
    over all of it. Images of another size have other norms.

    Args:
        levels: L, number of levels.
        low: lowest level, deviation of the noise in units of pixels in [-1, 1].
        high: highest level; those between lie in equal ratios.
        noised: whether noise is added, as the model has seen images; else the norms are those of the image itself.
        components: of the mixture that are tried at most; the information criterion chooses.
        covariance: of a component, ``full`` or ``diag``.
        floor: added to each variance, in squared deviations of the norms.
    """

    noised: bool = True
    components: int = 5
    covariance: Covariance = "full"
    floor: float = 1e-3

    passes: ClassVar[str] = "10F"
    reference: ClassVar[str] = "Mahmood et al., Multiscale Score Matching for Out-of-Distribution Detection, ICLR 2021, arXiv 2010.13132"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.components <= 100 or self.covariance not in ("full", "diag") or not 0 < self.floor <= 1:
            raise ConfigError(
                f"msma: components = {self.components} (1 to 100), covariance = {self.covariance!r} (full or diag), "
                f"floor = {self.floor} (0 to 1]"
            )

    @property
    def signal(self) -> str:
        return named("msma.norms", {"levels": self.levels, "low": self.low, "high": self.high, "noised": self.noised})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        rows = self.unseen(batches, held_out, generator)
        return fit_mixture(rows, most=self.components, covariance=self.covariance, floor=self.floor, generator=generator)

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        return mixture_surprise(state, self.rows(signals, len(state["mean"])))
