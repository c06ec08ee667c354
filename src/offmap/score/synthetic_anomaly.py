"""How odd an image is to a network that learnt to find what was put into normal images, and where: FPI, PII, NSA, many tasks."""

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
class SyntheticAnomaly(Localiser):
    """Mean of the largest values of the map that a synthetic-anomaly network gives: FPI, PII, NSA, CutPaste with labels, or many tasks.

    Each pixel's value is the label that the network expects there: the share of a foreign piece (FPI, PII), how far the pixel was
    changed (NSA, deformation, intensity), or whether it was pasted (CutPaste). Score and map lie in [0, 1]. Which of the methods it is
    lies in the tasks that the network was trained on, ``[train] tasks``; the number is made in the same way.

    Needs a network of the trainer ``synthetic_anomaly`` with a map. Nothing is fitted; scoring takes one pass; the state is empty.

    Fails for what looks like no task that the network learnt: images of another organ or device may have an empty map. Put ``cutpaste``,
    which reads the features of the same network, or a detector of another encoder beside it. Trained for too long, it turns round on
    real anomalies; the checkpoint is therefore chosen on a task that is held out, which did not prevent it in the project's own
    measurement on brain MR.

    Args:
        share: of the pixels whose mean is the score: 1 for all of them, 0 for the largest one.
    """

    share: float = 0.01

    passes: ClassVar[str] = "1F"
    reference: ClassVar[str] = (
        "Tan et al., Foreign Patch Interpolation (FPI), MELBA 2022, arXiv 2011.04197; Tan et al., Poisson Image Interpolation (PII), "
        "MICCAI 2021, arXiv 2107.02622; Schlueter et al., Natural Synthetic Anomalies (NSA), ECCV 2022, arXiv 2109.15222; Baugh et al., "
        "Many Tasks Make Light Work, MICCAI 2023, arXiv 2307.00899"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"synthetic_anomaly: share = {self.share} must lie in 0..1")

    @property
    def signal(self) -> str:
        """Name of what is read."""
        return named("synthetic.top", {"share": self.share})

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.signal})

    @property
    def map_needs(self) -> frozenset[str]:
        return frozenset({"synthetic.map"})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        for batch in batches:
            self.raw_score({}, batch)
        return {}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        found = signals[self.signal]
        if found.ndim != 1:
            raise SignalError(f"{self.method()}: {self.signal} of shape {tuple(found.shape)} must be (N,)")
        return found

    def raw_map(self, state: State, signals: Signals) -> Float[Tensor, "n *s"]:
        return signals["synthetic.map"][:, 0]
