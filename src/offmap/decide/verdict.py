"""What to do with an image: accept, review, reject, or say that it was not assessed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from offmap.core.component import Component
from offmap.core.errors import ConfigError
from offmap.core.types import REASONS, Verdict

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Thresholds(Component):
    """Verdicts by false-alarm rate: ``p <= reject`` reject, ``p <= alpha`` review, otherwise accept.

    The rates hold for images exchangeable with the calibration images; ``reject`` needs ``ceil(1 / reject) - 1`` of them.

    Args:
        alpha: share of in-distribution images that go to review or further, in (0, 1).
        reject: share that is rejected, in (0, alpha]; alpha / 10 if not given.
    """

    reference: ClassVar[str] = "Vovk et al., Algorithmic Learning in a Random World, 2005"
    alpha: float = 0.05
    reject: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1 or not 0 < self.reject_at <= self.alpha:
            raise ConfigError(f"alpha = {self.alpha} must lie in (0, 1) and reject = {self.reject_at} in (0, alpha]")

    @property
    def reject_at(self) -> float:
        """p-value at and below which an image is rejected."""
        return self.alpha / 10 if self.reject is None else self.reject

    def verdict(self, p_value: float) -> Verdict:
        """Verdict of one assessed image.

        Raises:
            ConfigError: p_value outside (0, 1].
        """
        if not 0 < p_value <= 1:
            raise ConfigError(f"p_value = {p_value} must lie in (0, 1]; an image without a p-value is not assessed and needs a reason")
        if p_value <= self.reject_at * (1 + _ROUNDING):
            return "reject"
        return "review" if p_value <= self.alpha * (1 + _ROUNDING) else "accept"

    def verdicts(self, p_values: Float[np.ndarray, " n"], reasons: Sequence[str] = ()) -> tuple[Verdict, ...]:
        """Verdicts of many; whatever has a reason not to be assessed is ``not_assessed``, whatever its p-value.

        A DICOM image of a modality that the gate was not fitted on (``wrong_modality``) is one of these: its own tag says
        that no in-distribution image can be compared with it. An image of another kind without such a tag is scored.

        Args:
            p_values: conformal; NaN where not assessed.
            reasons: one of ``core.types.REASONS`` where not assessed, empty otherwise; none at all = all assessed.

        Raises:
            ConfigError: lengths differ, an unknown reason, or a row without a reason whose p-value is not in (0, 1].
        """
        if len(reasons) not in (0, len(p_values)):
            raise ConfigError(f"{len(p_values)} p-values and {len(reasons)} reasons: one of each for every image expected")
        unknown = sorted({reason for reason in reasons if reason} - set(REASONS))
        if unknown:
            raise ConfigError(f"unknown reason {unknown[0]!r}; known: {', '.join(REASONS)}")
        codes = reasons or [""] * len(p_values)
        return tuple("not_assessed" if code else self.verdict(p) for p, code in zip(p_values.tolist(), codes, strict=True))
