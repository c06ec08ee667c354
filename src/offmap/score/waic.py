"""How improbable several models find an image, and how much they disagree about it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.errors import SignalError
from offmap.core.types import Signals
from offmap.score._bound import check_samples, parts_name


@dataclass(frozen=True, kw_only=True)
class WAIC(Detector):
    """``Var_k log p_k(x) - E_k log p_k(x)`` over K models in nats, each by its evidence bound; the variance is unbiased.

    The criterion of Watanabe and Akaike with the models of an ensemble in place of draws from a posterior.

    Needs two or more variational autoencoders of the in-distribution images that differ in their random numbers (``train:vae`` with
    ``members = 5``). Scoring takes a pass of each; nothing is fitted, and there is no state.

    Fails for images of many pixels: the variance grows with the square of their number, the mean with the number itself, and the order
    is that of the disagreement alone. Where it does not, it inherits the paradox of likelihoods: simple odd images look usual.

    Args:
        samples: codes drawn from the posterior of each image, 0 for its mean alone.
    """

    samples: int = 1

    passes: ClassVar[str] = "5F"
    reference: ClassVar[str] = (
        "Choi et al., WAIC, but Why? Generative Ensembles for Robust Anomaly Detection, 2018, arXiv 1810.01392; Watanabe, J. Mach. Learn. "
        "Res. 11, 2010"
    )

    def __post_init__(self) -> None:
        check_samples(self.method(), self.samples)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({parts_name(self.samples, "elbo.members")})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        for batch in batches:
            self._bounds(batch)
        return {}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        bounds = self._bounds(signals)
        return bounds.var(dim=1) - bounds.mean(dim=1)

    def _bounds(self, signals: Signals) -> Float64[Tensor, "n k"]:
        (name,) = self.needs
        found = signals[name].double()
        if found.ndim != 2 or found.shape[1] < 2:
            raise SignalError(f"waic: {name} of shape {tuple(found.shape)} must be (N, K) of K >= 2 models: train with members = 5")
        return found
