"""Conformal p-values of raw scores, from one calibration part or across folds.

Split: Vovk et al., Algorithmic Learning in a Random World, 2005; Papadopoulos et al., ECML 2002. Cross: Vovk, Annals of
Mathematics and Artificial Intelligence 74, 2015, arXiv:1208.0806; worst case: Barber et al., Annals of Statistics 49, 2021,
arXiv:1905.02928, theorem 4.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from offmap.core.component import Component
from offmap.core.errors import BundleError, ConfigError, SignalError
from offmap.core.robust import centre_and_spread, finite


@dataclass(frozen=True, eq=False)
class Calibrated:
    """In-distribution scores that new ones are ranked among; ``Split`` and ``Cross`` differ in the number of folds.

    Args:
        scores: fold after fold, each sorted upwards.
        sizes: number of scores of each fold.
    """

    scores: Float32[Tensor, " n"] = field(repr=False)
    sizes: tuple[int, ...]
    guarantee: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if self.n == 0 or min(self.sizes, default=0) < 1 or sum(self.sizes) != self.n:
            raise SignalError(f"{self.n} calibration scores in folds of {list(self.sizes)}: each fold needs at least one image")
        finite(self.scores, "calibration scores")
        if any(bool((fold.diff() < 0).any()) for fold in self.scores.split(self.sizes)):
            raise SignalError("calibration scores must be sorted within each fold")

    @classmethod
    def _of(cls, folds: Sequence[Float[Tensor, " _"]]) -> "Calibrated":
        ordered = [finite(fold, f"calibration scores of fold {k}").sort().values for k, fold in enumerate(folds)]
        return cls(torch.cat(ordered) if ordered else torch.empty(0), tuple(len(fold) for fold in ordered))

    @property
    def n(self) -> int:
        """Number of calibration images."""
        return len(self.scores)

    @property
    def cap(self) -> float:
        """Largest surprise in bits that n images can show: ``log2(n + 1)``."""
        return math.log2(self.n + 1)

    def p_value(self, scores: Float[Tensor, "*k m"]) -> Float64[Tensor, " m"]:
        """``(1 + sum_k #{i in fold k: s_k(x_i) >= s_k(x)}) / (n + 1)``, in [1/(n+1), 1], small = OOD.

        Args:
            scores: ``(K, m)``, row k from the detector whose fold k was held back; ``(m,)`` where K = 1. Compared in float32.

        Raises:
            SignalError: not finite (images named) or not K rows.
        """
        at_least, _ = self._counts(scores)
        return (1 + at_least).double() / (self.n + 1)

    def randomised_p_value(self, scores: Float[Tensor, "*k m"], generator: torch.Generator) -> Float64[Tensor, " m"]:
        """The same with ties broken at random, exactly uniform on exchangeable images; for tests of uniformity."""
        at_least, above = self._counts(scores)
        share = 1 - torch.rand(at_least.shape, generator=generator, dtype=torch.float64)
        return (above + share * (1 + at_least - above)) / (self.n + 1)

    def surprise(self, p_value: Float64[Tensor, " m"]) -> Float64[Tensor, " m"]:
        """``-log2(p)`` in bits, in [0, cap]."""
        return (-torch.log2(p_value)).clamp(max=self.cap) + 0.0

    def score(self, scores: Float[Tensor, "*k m"]) -> Float[Tensor, " m"]:
        """One score an image: as it is for a split, the mean of the K standardised ones otherwise."""
        return self._rows(scores)[0]

    def pooled(self) -> Float[Tensor, " n"]:
        """Calibration scores on the scale of ``score``."""
        return self.scores

    def state(self) -> dict[str, Tensor]:
        """Tensors from which ``from_state`` builds the same."""
        return {"scores": self.scores, "sizes": torch.tensor(self.sizes, dtype=torch.int64)}

    def _rows(self, scores: Float[Tensor, "*k m"]) -> Float32[Tensor, "k m"]:
        rows = finite(scores, "scores")
        rows = rows[None] if rows.ndim == 1 else rows
        if rows.ndim != 2 or len(rows) != len(self.sizes):
            raise SignalError(f"scores of shape {tuple(scores.shape)}: one row for each of the {len(self.sizes)} folds expected")
        return rows.contiguous()

    def _counts(self, scores: Float[Tensor, "*k m"]) -> tuple[Tensor, Tensor]:
        """Calibration scores at or above, and strictly above."""
        at_least = above = torch.zeros(scores.shape[-1], dtype=torch.int64)
        for fold, row in zip(self.scores.split(self.sizes), self._rows(scores), strict=True):
            at_least = at_least + len(fold) - torch.searchsorted(fold, row)
            above = above + len(fold) - torch.searchsorted(fold, row, right=True)
        return at_least, above


class Split(Calibrated):
    """One calibration part, disjoint from everything that the detector has seen."""

    guarantee: ClassVar[str] = "P(p <= alpha) <= alpha for images exchangeable with the calibration part"

    @classmethod
    def fit(cls, scores: Float[Tensor, " n"]) -> "Calibrated":
        """From the scores of the calibration part, in any order.

        Raises:
            SignalError: no score, or not finite (images named).
        """
        return cls._of([scores])


class Cross(Calibrated):
    """K folds, each scored by a detector that was fitted on the others; every image serves twice."""

    guarantee: ClassVar[str] = (
        "P(p <= alpha) is about alpha for exchangeable images; the worst case is 2 alpha and a term below sqrt(2/n) (cross-conformal)"
    )

    @classmethod
    def fit(cls, folds: Sequence[Float[Tensor, " _"]]) -> "Calibrated":
        """From the scores of each held-back fold under the detector that has not seen it.

        Raises:
            SignalError: an empty fold, or scores that are not finite (images named).
            ConfigError: fewer than two folds.
        """
        if len(folds) < 2:
            raise ConfigError(f"cross-conformal calibration needs 2 folds or more, got {len(folds)}")
        return cls._of(folds)

    def score(self, scores: Float[Tensor, "*k m"]) -> Float[Tensor, " m"]:
        """Mean over folds of the scores standardised by the median and MAD of the held-back fold, float64."""
        total = torch.zeros(scores.shape[-1], dtype=torch.float64)
        for fold, row in zip(self.scores.split(self.sizes), self._rows(scores), strict=True):
            centre, spread = centre_and_spread(fold)
            total += (row.double() - centre) / spread
        return total / len(self.sizes)

    def pooled(self) -> Float[Tensor, " n"]:
        """Held-back scores, each standardised in its fold, float64."""
        parts = []
        for fold in self.scores.split(self.sizes):
            centre, spread = centre_and_spread(fold)
            parts.append((fold.double() - centre) / spread)
        return torch.cat(parts)


def from_state(state: Mapping[str, Tensor]) -> Calibrated:
    """What ``Calibrated.state`` gave: a ``Split`` where there is one fold, a ``Cross`` otherwise.

    Raises:
        BundleError: tensors are missing, of wrong kind, or not sorted.
    """
    try:
        scores, sizes = state["scores"], state["sizes"]
        if scores.dtype != torch.float32 or scores.ndim != 1 or sizes.dtype != torch.int64 or sizes.ndim != 1:
            raise SignalError("scores must be float32 and sizes int64, both one-dimensional")
        return (Split if len(sizes) == 1 else Cross)(scores, tuple(sizes.tolist()))
    except (KeyError, SignalError) as error:
        raise BundleError(f"the gate's calibration is damaged: {error}. Fit the gate anew") from error


@dataclass(frozen=True)
class Conformal(Component):
    """Turns raw scores into p-values that are valid whatever the law of the scores is.

    A p-value is the share of in-distribution images that look at least as odd; it fails where the new images are not
    exchangeable with the calibration images for harmless reasons (another population, copies in both parts).

    Args:
        kind: one calibration part, folds, or chosen by the number of calibration images.
        folds: K of cross-conformal calibration, >= 2; that many detectors are fitted and kept.
        enough: calibration images from which ``auto`` takes a split; 199 make ``reject`` at 0.5 % reachable.
    """

    reference: ClassVar[str] = "Vovk, Annals of Mathematics and Artificial Intelligence 74, 2015, arXiv:1208.0806"
    kind: Literal["auto", "split", "cross"] = "auto"
    folds: int = 5
    enough: int = 199

    def __post_init__(self) -> None:
        if self.folds < 2 or self.enough < 1:
            raise ConfigError(f"conformal: folds = {self.folds} must be >= 2 and enough = {self.enough} must be >= 1")

    def choose(self, calibration_images: int) -> Literal["split", "cross"]:
        """What to do when a split would leave so many images to calibrate on."""
        if self.kind == "auto":
            return "split" if calibration_images >= self.enough else "cross"
        return self.kind

    def fit(self, folds: Sequence[Float[Tensor, " _"]]) -> Calibrated:
        """``Split`` from one tensor of scores, ``Cross`` from several.

        Raises:
            SignalError: no scores, an empty fold, or not finite.
        """
        return Split.fit(folds[0]) if len(folds) == 1 else Cross.fit(folds)
