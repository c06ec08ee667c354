"""How far the likelihood of an image is from the usual, on either side."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.types import Signals
from offmap.score._bound import bound_of, check_samples, parts_name

ENOUGH = 30
"""Held-out images from which on the mean is theirs alone."""


@dataclass(frozen=True, kw_only=True)
class Typicality(Detector):
    """``|-log p(x) - H|``, H the mean of ``-log p`` over in-distribution images, in nats, at least 0.

    ``-log p`` is the negative bound of ``elbo``. An image that is too probable, such as a smooth one, is as odd as one that is too
    improbable: the usual images of a space of many dimensions are not the most probable ones. The paper tests several images together;
    this is its test of one.

    Needs a variational autoencoder. H is that of held-out images (of all, where fewer than 30 are held out); scoring takes what ``elbo``
    takes; the state is one number.

    Fails for odd images whose likelihood is the usual one, and where usual images differ much among themselves in how complex they are.

    Args:
        samples: codes drawn from the posterior of each image; 0 for its mean alone.
    """

    samples: int = 1

    reference: ClassVar[str] = (
        "Nalisnick et al., Detecting Out-of-Distribution Inputs to Deep Generative Models Using Typicality, 2019, arXiv 1906.02994"
    )

    def __post_init__(self) -> None:
        check_samples("typicality", self.samples)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({parts_name(self.samples)})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        count, total = 0, torch.zeros((), dtype=torch.float64)
        for source in (held_out or (), batches):
            if count >= ENOUGH:
                break
            for batch in source:
                surprise = self._surprise(batch)
                count, total = count + len(surprise), total.to(surprise) + surprise.sum()
        return {"entropy": total / count}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        return (self._surprise(signals) - state["entropy"]).abs()

    def _surprise(self, signals: Signals) -> Float64[Tensor, " n"]:
        return -bound_of(signals, parts_name(self.samples), "typicality")
