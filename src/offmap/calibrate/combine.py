"""Several detectors as one statistic, which is then calibrated itself, so that their dependence does no harm.

The guarantee is on the statistic (recalibrated combination); Fisher's sum without it is invalid under dependence.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.component import Component
from offmap.core.errors import BundleError, ConfigError, SignalError
from offmap.core.robust import centre_and_spread, finite


@dataclass(frozen=True)
class Combine(Component):
    """Robust z-scores of the parts, reduced to one number.

    Args:
        reduce: mean over parts, or the largest.
    """

    reference: ClassVar[str] = "Vovk and Wang, Biometrika 107, 2020, arXiv:1212.4966 (why p-values are not averaged here)"
    reduce: Literal["mean", "max"] = "mean"

    def fit(self, parts: Mapping[str, Float[Tensor, " n"]]) -> "Combined":
        """Centre and spread of each part.

        Args:
            parts: scores of held-out in-distribution images by part, disjoint from the fit part and the calibration part.

        Raises:
            ConfigError: no part, or a name with characters other than letters, digits and ``_ . -``.
            SignalError: a part is empty or not finite.
        """
        odd = [name for name in parts if not re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", name)]
        if odd or not parts:
            raise ConfigError(f"parts to combine must have names of letters, digits and _ . -; given: {odd or 'none'}")
        return Combined(self.reduce, {name: centre_and_spread(scores) for name, scores in parts.items()})


@dataclass(frozen=True)
class Combined:
    """Standardisation of each part and the rule.

    Args:
        reduce: ``mean`` or ``max``.
        laws: centre and spread by part, in the units of its score.
    """

    reduce: str
    laws: Mapping[str, tuple[float, float]]

    def score(self, parts: Mapping[str, Float[Tensor, " m"]]) -> Float64[Tensor, " m"]:
        """The statistic, higher = more OOD.

        Raises:
            SignalError: a part is missing or not finite (images named).
        """
        stacked = torch.stack(list(self.standardised(parts).values()))
        return stacked.mean(dim=0) if self.reduce == "mean" else stacked.amax(dim=0)

    def standardised(self, parts: Mapping[str, Float[Tensor, " m"]]) -> dict[str, Float64[Tensor, " m"]]:
        """Robust z of each part: in spreads above the held-out median."""
        missing = sorted(set(self.laws) - set(parts))
        if missing:
            raise SignalError(f"the combination needs the scores of {', '.join(missing)}; given: {', '.join(sorted(parts)) or 'none'}")
        return {name: (finite(parts[name], f"scores of {name}").double() - centre) / spread for name, (centre, spread) in self.laws.items()}

    def state(self) -> dict[str, Tensor]:
        """``(centre, spread)`` of each part, by its name."""
        return {name: torch.tensor(law, dtype=torch.float64) for name, law in self.laws.items()}

    @classmethod
    def from_state(cls, combine: Combine, state: Mapping[str, Tensor]) -> "Combined":
        """What ``state`` gave.

        Raises:
            BundleError: no part, or a spread that is not positive.
        """
        if not state or any(t.shape != (2,) or t.dtype != torch.float64 or not bool(t[1] > 0) for t in state.values()):
            raise BundleError("the gate's combination is damaged: each part needs a centre and a positive spread. Fit the gate anew")
        return cls(combine.reduce, {name: (float(t[0]), float(t[1])) for name, t in sorted(state.items())})
