"""How much likelier a model of the background finds an image than the model of the images themselves."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.types import Signals
from offmap.score._bound import bound_of, check_samples, parts_name


@dataclass(frozen=True, kw_only=True)
class LikelihoodRatio(Detector):
    """``(log p_bg(x) - log p(x)) / d`` in nats a pixel value; both by the evidence bound of a variational autoencoder.

    The background model is trained on the same images with a share of their pixels replaced by random ones. What both models find
    equally probable, such as a dark ground, cancels out; what only the full model knows stays. 0 is an image of which the images'
    own structure says nothing, less is usual.

    Needs a variational autoencoder with a background model (``train:vae`` with ``background = true``). Scoring takes a pass of each;
    nothing is fitted, and there is no state.

    Fails where the structure of the in-distribution images is destroyed by the random pixels no more than that of odd ones: near
    chance on pathology patches in one published comparison. Far images, of which neither model knows anything, may be turned round:
    with a model of chest X-rays, brain MRI had an AUROC of 0.01 in a measurement of the project's own. The share of random pixels
    decides, and can only be chosen with odd images.

    Args:
        samples: codes drawn from the posterior of each image, 0 for its mean alone.
    """

    samples: int = 1

    passes: ClassVar[str] = "2F"
    reference: ClassVar[str] = "Ren et al., Likelihood Ratios for Out-of-Distribution Detection, NeurIPS 2019, arXiv 1906.02845"

    def __post_init__(self) -> None:
        check_samples(self.method(), self.samples)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({parts_name(self.samples), parts_name(self.samples, "elbo.background")})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        for batch in batches:
            self.raw_score({}, batch)
        return {}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        own = parts_name(self.samples)
        full = bound_of(signals, own, self.method())
        background = bound_of(signals, parts_name(self.samples, "elbo.background"), self.method())
        return (background - full) / signals[own][:, 2].double()
