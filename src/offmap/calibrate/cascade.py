"""A cheap detector first, an expensive one only where the first is undecided; calibrated as one statistic."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from offmap.calibrate.combine import Combine, Combined
from offmap.core.component import Component
from offmap.core.errors import BundleError, ConfigError, SignalError
from offmap.core.robust import finite

LARGEST = torch.finfo(torch.float64).max
"""Stands for no bound: learned tensors are finite."""


@dataclass(frozen=True)
class Cascade(Component):
    """Two detectors as one statistic T; the second runs only where the first one's p-value is undecided.

    With z1, z2 the robust z-scores of the two parts, and p1 the rank of the first score among held-out in-distribution images,
    ``p1 = (1 + #{held out >= s1}) / (m + 1)``:

        ``T = z1``                            where p1 < low or p1 > high (decided: the second does not run)
        ``T = rule(z1, z2)``                  where low <= p1 <= high

    **Why the p-value of T is valid.** Given the fit part and the held-out part, both detectors, their z-scales and the bounds of the
    undecided range are fixed, so T is a fixed function of one image; which images pass on to the second detector is part of that
    function. T is computed by it on calibration images and on new ones alike. Where these are exchangeable, so are
    ``T(x_1), ..., T(x_n), T(x)``, and the rank ``p = (1 + #{T(x_i) >= T(x)}) / (n + 1)`` has ``P(p <= alpha) <= alpha`` for every alpha,
    whatever the two detectors are and however they depend on each other. No image of the calibration part may be among the held-out ones.

    Not valid is the cascade of p-values: p1 where decided, the second one's own p-value otherwise. An undecided image is then tried
    a second time, and up to ``alpha + P(undecided and p2 <= alpha)`` of in-distribution images are flagged.

    Fails when the second detector alone would see what the first calls usual (p1 > high): such an image is never passed on. A wider
    range costs more and misses less; ``[0, 1]`` passes on everything.

    Args:
        first: name of the cheap part in the recipe.
        then: name of the expensive part.
        undecided: range ``[low, high]`` of p1 in which the second runs, ``0 <= low < high <= 1``; that share, ``high - low``, of
            in-distribution images needs it.
        rule: of the two z-scores of an undecided image: their ``mean``, the larger (``max``), or the second alone (``second``).
    """

    reference: ClassVar[str] = (
        "Viola and Jones, CVPR 2001, doi:10.1109/CVPR.2001.990517 (cascades); calibration as one statistic: Vovk et al., "
        "Algorithmic Learning in a Random World, 2005"
    )
    first: str = ""
    then: str = ""
    undecided: tuple[float, ...] = (0.02, 0.5)
    rule: Literal["mean", "max", "second"] = "mean"

    def __post_init__(self) -> None:
        if not self.first or not self.then or self.first == self.then:
            raise ConfigError(f'[cascade] first = "{self.first}" and then = "{self.then}" must name two parts of the recipe')
        if len(self.undecided) != 2 or not 0 <= self.undecided[0] < self.undecided[1] <= 1:
            raise ConfigError(f"[cascade] undecided = {list(self.undecided)} must be two p-values, 0 <= low < high <= 1")

    def fit(self, parts: Mapping[str, Float[Tensor, " n"]]) -> "Cascaded":
        """z-scales and the bounds of the undecided range.

        Args:
            parts: scores of held-out in-distribution images of both parts, disjoint from the fit part and the calibration part.

        Raises:
            ConfigError: a part is missing.
            SignalError: a part is empty or not finite.
        """
        lacking = {self.first, self.then} - set(parts)
        if lacking:
            raise ConfigError(f"[cascade] names {', '.join(sorted(lacking))}; the recipe's parts are {', '.join(parts)}")
        laws = Combine().fit({name: parts[name] for name in (self.first, self.then)})
        return Cascaded(self, laws, *_bounds(finite(parts[self.first], self.first).double(), self.undecided))


def _bounds(held_out: Float64[Tensor, " m"], undecided: tuple[float, ...]) -> tuple[float, float]:
    """Scores between which ``low <= p1 <= high``, halfway between held-out ones, so that no held-out image lies on a bound."""
    ranked, (low, high) = held_out.sort(descending=True).values, undecided
    slots = len(ranked) + 1
    return _below(ranked, math.floor(high * slots + 1e-9) - 1), _below(ranked, math.ceil(low * slots - 1e-9) - 1)


def _below(ranked: Float64[Tensor, " m"], k: int) -> float:
    """A number that k of the scores exceed."""
    if k <= 0 or k >= len(ranked):
        return LARGEST if k <= 0 else -LARGEST
    return float((ranked[k - 1] + ranked[k]) / 2)


@dataclass(frozen=True)
class Cascaded:
    """A cascade with what it learned.

    Args:
        cascade: the rule.
        laws: z-scale of each part.
        low, high: scores of the first part between which it is undecided.
    """

    cascade: Cascade
    laws: Combined
    low: float
    high: float

    def undecided(self, first: Float[Tensor, " m"]) -> Bool[Tensor, " m"]:
        """Images that the second part is needed for.

        Args:
            first: scores of the first part.
        """
        scores = first.detach().double()
        return (scores > self.low) & (scores < self.high)

    def score(self, parts: Mapping[str, Float[Tensor, " m"]]) -> Float64[Tensor, " m"]:
        """The statistic T, higher = more OOD.

        Args:
            parts: scores of both parts; those of the second are NaN where it did not run, and count only where the first is undecided.

        Raises:
            SignalError: a part is missing, or a score that counts is not finite (images named).
        """
        first, then = self.cascade.first, self.cascade.then
        if {first, then} - set(parts):
            raise SignalError(f"the cascade needs the scores of {first} and {then}; given: {', '.join(sorted(parts)) or 'none'}")
        passed = self.undecided(parts[first]) & ~torch.isnan(parts[then])
        second = torch.where(passed, parts[then], parts[then].new_tensor(self.laws.laws[then][0]))
        z = self.laws.standardised({first: parts[first], then: second})
        both = {"mean": (z[first] + z[then]) / 2, "max": torch.maximum(z[first], z[then]), "second": z[then]}[self.cascade.rule]
        return torch.where(passed.cpu(), both, z[first])

    def state(self) -> dict[str, Tensor]:
        """z-scales by part, and the bounds."""
        bounds = torch.tensor([self.low, self.high], dtype=torch.float64)
        return {"undecided": bounds, **{f"law.{name}": value for name, value in self.laws.state().items()}}

    @classmethod
    def from_state(cls, cascade: Cascade, state: Mapping[str, Tensor]) -> "Cascaded":
        """What ``state`` gave.

        Raises:
            BundleError: bounds or z-scales that make no sense, or of other parts.
        """
        laws = Combined.from_state(Combine(), {k.removeprefix("law."): v for k, v in state.items() if k.startswith("law.")})
        bounds = state.get("undecided")
        if bounds is None or bounds.shape != (2,) or bounds.dtype != torch.float64 or set(laws.laws) != {cascade.first, cascade.then}:
            raise BundleError("the gate's cascade is damaged: two bounds and the scale of each part are needed. Fit the gate anew")
        return cls(cascade, laws, float(bounds[0]), float(bounds[1]))
