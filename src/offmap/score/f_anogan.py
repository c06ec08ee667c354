"""How badly a generative adversarial network makes an image again, in pixels and in its critic's features."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.detector import Localiser, State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.types import Signals


@dataclass(frozen=True, kw_only=True)
class FAnoGAN(Localiser):
    """``|x - G(E(x))|^2 / d + kappa |f(x) - f(G(E(x)))|^2 / d_f``: encoder E, generator G, f the critic's last convolution; at least 0.

    Pixels are in [-1, 1]; d and d_f count pixels and features. The map is ``|x - G(E(x))|``, mean over channels.

    Needs an adversarial model of the in-distribution images (``train:gan``). Scoring takes a pass of encoder and generator, and two of the
    critic; nothing is fitted, and there is no state.

    Fails for odd images that are simple or smooth: the generator makes them as well as usual ones, and better than usual ones that are
    rich in detail, so the order may be turned round (AUROC 0.17 on Camelyon16 in one published comparison). What the generator never
    learnt of the usual images is odd as well.

    Args:
        kappa: weight of the features' error, 0 or more.
    """

    kappa: float = 1.0

    passes: ClassVar[str] = "4F"
    reference: ClassVar[str] = (
        "Schlegl et al., f-AnoGAN: Fast Unsupervised Anomaly Detection with Generative Adversarial Networks, Medical Image Analysis 54, "
        "2019, doi 10.1016/j.media.2019.01.010"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.kappa < float("inf"):
            raise ConfigError(f"f_anogan: kappa = {self.kappa} must be 0 or more")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"gan.errors"})

    @property
    def fit_uses(self) -> frozenset[str]:
        return self.map_needs

    @property
    def map_needs(self) -> frozenset[str]:
        return frozenset({"gan.map"})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        for batch in batches:
            self.raw_score({}, batch)
        return {}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        errors = signals["gan.errors"].double()
        if errors.ndim != 2 or errors.shape[1] != 2:
            raise SignalError(f"f_anogan: gan.errors of shape {tuple(errors.shape)} must be (N, 2)")
        return errors[:, 0] + self.kappa * errors[:, 1]

    def raw_map(self, state: State, signals: Signals) -> Float[Tensor, "n *s"]:
        return signals["gan.map"][:, 0]
