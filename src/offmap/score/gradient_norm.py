"""Size of the gradient of a generative model's loss with respect to the image."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.detector import State
from offmap.core.signals import named
from offmap.core.types import Signals
from offmap.score._noise_levels import NoiseDetector, spread_of


@dataclass(frozen=True, kw_only=True)
class GradientNorm(NoiseDetector):
    """``|dL/dx| / sqrt(d)`` of the denoising loss ``L = (1/2) mean_l |D(x + sigma_l n, sigma_l) - x|^2 / sigma_l^2``, at least 0.

    L is the part of the model's bound on ``-log p(x)`` that depends on the image, so this is how steeply the bound climbs. With
    ``two_sided`` the number is ``|log - mean| / deviation`` of in-distribution images: norms that are too small are odd, too.

    Of a variational autoencoder L is the negative evidence bound itself, in nats for pixels in [0, 1]; levels have no meaning.

    Needs a diffusion model or a variational autoencoder of the in-distribution images. Scoring takes a pass forward and one back a level,
    3F+3B with the defaults, 1F+1B of an autoencoder; nothing is fitted unless ``two_sided``; the state is two numbers.

    Fails for odd images that lie where the bound is flat, and grows with the number of fine details of an image, odd or not.

    Args:
        levels: number of levels.
        low: lowest level, deviation of the noise in units of pixels in [-1, 1].
        high: highest level; those between lie in equal ratios.
        two_sided: distance from the usual on a scale of logarithms.
    """

    levels: int = 3
    low: float = 0.1
    high: float = 1.0
    two_sided: bool = False

    passes: ClassVar[str] = "3F+3B"
    reference: ClassVar[str] = (
        "Grathwohl et al., Your Classifier is Secretly an Energy Based Model, ICLR 2020, arXiv 1912.03263: |d log p / dx|; the loss of a "
        "diffusion model in place of log p is the project's own"
    )

    @property
    def signal(self) -> str:
        return named("input_gradient.norm", {"levels": self.levels, "low": self.low, "high": self.high})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        if not self.two_sided:
            for batch in batches:
                self.rows(batch, 1)
            return {}
        logs = self.unseen(batches, held_out, generator).clamp_min(1e-30).log()
        return {"mean": logs.mean(dim=0), "spread": spread_of(logs - logs.mean(dim=0))}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        rows = self.rows(signals, 1)[:, 0]
        if not self.two_sided:
            return rows
        return (rows.to(state["mean"]).clamp_min(1e-30).log() - state["mean"]).abs() / state["spread"]
