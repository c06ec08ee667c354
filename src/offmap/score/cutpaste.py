"""CutPaste: distance of an image's features, learnt by telling cut and pasted images from normal ones, to those of normal images."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.linalg import Shrinkage, Whitener, shrunk
from offmap.core.moments import Moments
from offmap.core.types import Signals
from offmap.score._gaussian import check_shrinkage
from offmap.score._layer import rows_of

SIGNAL = "synthetic.features"


@dataclass(frozen=True, kw_only=True)
class CutPaste(Detector):
    """Squared Mahalanobis distance to the mean of normal images, ``(h - mu)^T Sigma^-1 (h - mu)``, of features h of a task classifier.

    One Gaussian for all images, labels play no part. The order is that of the paper's Gaussian density. The number is a squared distance
    in standard deviations: about D for a usual image if features were Gaussian, no upper end.

    Needs a network of the trainer ``synthetic_anomaly``; CutPaste in three ways is one with ``tasks = ["cutpaste", "cutpaste_scar"]`` and
    ``objective = "class"``. On the features of a network with a map (FPI, PII, NSA, many tasks) it finds images of another kind, for
    which the map may be empty.

    Fitting costs ``N D^2`` and ``D^3 / 3``, scoring one pass and ``D^2 / 2``; the state is ``D^2 + D`` numbers.

    Fails for small anomalies: the features are a mean over the image. A classifier that is sure of its tasks may have
    forgotten what else varies; the checkpoint is therefore chosen on a task that is held out.

    Args:
        shrinkage: ``ledoit_wolf`` or ``oas``; both keep the covariance regular when there are fewer images than dimensions.
    """

    shrinkage: Shrinkage = "ledoit_wolf"

    passes: ClassVar[str] = "1F"
    reference: ClassVar[str] = (
        "Li et al., CutPaste: Self-Supervised Learning for Anomaly Detection and Localization, CVPR 2021, arXiv 2104.04015"
    )

    def __post_init__(self) -> None:
        check_shrinkage(self.shrinkage, self.method())

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({SIGNAL})

    def _rows(self, signals: Signals, width: int | None = None) -> Float64[Tensor, "n d"]:
        return rows_of(signals, SIGNAL, self.method(), width)

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        total = reduce(Moments.merge, (Moments.of(self._rows(batch)) for batch in batches))
        level = float(total.mean.square().sum())
        covariance = shrunk(total.scatter, total.quartic, count=total.count, level=level, kind=self.shrinkage)
        return {"mean": total.mean, "factor": Whitener.of(total.mean, covariance).factor}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        return Whitener(state["mean"], state["factor"]).squared(self._rows(signals, len(state["mean"])))
