"""Where a variational autoencoder would change an image to make it more probable, and restores it badly."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.detector import Localiser, State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.signals import named
from offmap.core.types import Signals


@dataclass(frozen=True, kw_only=True)
class ELBOGradient(Localiser):
    """Mean over pixels of the map ``|d ELBO(x) / dx| * |x - y|``, smoothed; y the reconstruction; at least 0.

    The gradient tells which pixels the bound depends on, the difference which ones the model does not restore; a pixel is odd where both
    are large. The map is in nats, for pixels in [0, 1].

    Needs a variational autoencoder of the in-distribution images. Scoring takes a pass forward and one back; nothing is fitted, and there
    is no state.

    Fails where usual images are hard to restore, at edges and in fine texture, which shine in every map; an odd region that is smooth and
    of a usual brightness stays dark.

    Args:
        smoothing: deviation of the Gaussian that smooths the map, in pixels; 0 for none.
    """

    smoothing: float = 2.0

    passes: ClassVar[str] = "1F+1B"
    reference: ClassVar[str] = (
        "Zimmerer et al., Unsupervised Anomaly Localization using Variational Auto-Encoders, MICCAI 2019, arXiv 1907.02796"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing <= 100:
            raise ConfigError(f"elbo_gradient: smoothing = {self.smoothing} must lie between 0 and 100")

    @property
    def signal(self) -> str:
        """Name of what is read."""
        return named("elbo_gradient.map", {"smoothing": self.smoothing})

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.signal})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        for batch in batches:
            self.raw_map({}, batch)
        return {}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        return self.raw_map(state, signals).double().flatten(1).mean(dim=1)

    def raw_map(self, state: State, signals: Signals) -> Float[Tensor, "n *s"]:
        found = signals[self.signal]
        if found.ndim < 4 or found.shape[1] != 1:
            raise SignalError(f"elbo_gradient: {self.signal} of shape {tuple(found.shape)} must be (N, 1, *S)")
        return found[:, 0]
