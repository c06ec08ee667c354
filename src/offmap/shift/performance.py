"""Accuracy on new images without their labels, estimated from how confidence and error went together on labelled ones.

Every estimate trusts that a confidence means on the new images what it meant on the old. The intervals say how much the estimate would
vary with other images; they say nothing about that trust, which no unlabelled data can confirm.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from offmap.core.errors import ConfigError
from offmap.core.resampling import LARGE, Binned, Measure, Resampling, independent

Weights = Float[np.ndarray, "b _"]
Replicates = Float[np.ndarray, " b"]

_STEPS = 30


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images whose answers are known to be right or wrong.

    Args:
        confidence: higher = surer; ``-inf`` for an image that was not assessed.
        right: 1 where the answer was right, 0 where it was wrong.
        units: number of each image's unit, as ``core.resampling.units_of``.

    Raises:
        ConfigError: no image, NaN or ``+inf``, or ``right`` is neither 0 nor 1.
    """

    confidence: Float[np.ndarray, " n"]
    right: Float[np.ndarray, " n"]
    units: Int[np.ndarray, " n"]

    def __post_init__(self) -> None:
        _check(self.confidence)
        if not np.isin(self.right, (0, 1)).all():
            raise ConfigError("'right' must be 0 or 1 for every labelled image")


@dataclass(frozen=True, eq=False)
class Unlabelled:
    """Images whose answers are not known to be right or wrong.

    Args:
        confidence, units: as ``Labelled``.
    """

    confidence: Float[np.ndarray, " m"]
    units: Int[np.ndarray, " m"]

    def __post_init__(self) -> None:
        _check(self.confidence)


def by_confidence(own: Labelled, new: Unlabelled, *, resampling: Resampling) -> dict[str, Measure]:
    """Estimates that take any confidence: ``average_threshold_confidence`` and ``error_regression``.

    An image that was not assessed counts as wrong. The regression has no value where the labelled images are all right or all wrong.

    Returns:
        accuracy in [0, 1], each with an interval over both sets of images.
    """
    return _estimates({"average_threshold_confidence": thresholded, "error_regression": regressed}, own, new, resampling)


def by_probability(own: Labelled, new: Unlabelled, *, resampling: Resampling) -> dict[str, Measure]:
    """Estimates that need the probability of the answer as confidence: ``average_confidence`` and ``difference_of_confidences``.

    Raises:
        ConfigError: a confidence outside [0, 1].
    """
    for confidence in (own.confidence, new.confidence):
        if not ((confidence >= 0) & (confidence <= 1)).all():
            raise ConfigError("these estimates need the probability of the answer, in [0, 1], as confidence")
    return _estimates({"average_confidence": averaged, "difference_of_confidences": differenced}, own, new, resampling)


def thresholded(own: Labelled, new: Unlabelled, counts: Weights, new_counts: Weights) -> Replicates:
    """ATC: the share of new images at or above the confidence below which as many labelled images lie as are wrong.

    Source: Garg et al., ICLR 2022, arXiv:2201.04234, equation 2.
    """
    order, rank = np.argsort(own.confidence, kind="stable"), np.argsort(new.confidence, kind="stable")
    rising, drawn = own.confidence[order], counts[:, order]
    starts = np.flatnonzero(np.r_[True, rising[1:] != rising[:-1]])
    below = np.concatenate(
        [np.cumsum(drawn, axis=1)[:, starts] - np.add.reduceat(drawn, starts, axis=1), drawn.sum(axis=1)[:, None]], axis=1
    )
    wrong = counts @ (1 - own.right)
    at = np.abs(below - wrong[:, None]).argmin(axis=1)
    threshold = np.append(rising[starts], np.inf)[at]
    cut = np.searchsorted(new.confidence[rank], threshold, side="left")
    under = np.concatenate([np.zeros((len(counts), 1)), np.cumsum(new_counts[:, rank], axis=1)], axis=1)
    return np.asarray(1 - under[np.arange(len(cut)), cut] / under[:, -1])


def averaged(own: Labelled, new: Unlabelled, counts: Weights, new_counts: Weights) -> Replicates:
    """The mean probability of the answers; takes nothing from the labelled images.

    Source: Hendrycks & Gimpel, ICLR 2017, arXiv:1610.02136.
    """
    return np.asarray(new_counts @ new.confidence / new_counts.sum(axis=1))


def differenced(own: Labelled, new: Unlabelled, counts: Weights, new_counts: Weights) -> Replicates:
    """DoC: accuracy on the labelled images less what the mean probability lost on the new ones.

    Source: Guillory et al., ICCV 2021, arXiv:2107.03315 (the difference itself, without a regression over many shifts).
    """
    known = counts @ (own.right - own.confidence) / counts.sum(axis=1)
    return np.asarray(averaged(own, new, counts, new_counts) + known)


def regressed(own: Labelled, new: Unlabelled, counts: Weights, new_counts: Weights) -> Replicates:
    """The mean of a logistic regression of "right" on the confidence, standardised on the labelled images.

    The slope has a standard normal prior, so that it exists where confidence separates right from wrong.
    """
    seen, met = np.isfinite(own.confidence), np.isfinite(new.confidence)
    if not seen.any():
        return np.full(len(counts), np.nan)
    centre, spread = own.confidence[seen].mean(), own.confidence[seen].std() or 1.0
    z, right, weights = (own.confidence[seen] - centre) / spread, own.right[seen], counts[:, seen]
    both = (weights @ right > 0) & (weights @ (1 - right) > 0)
    intercept, slope = _logistic(z, right, np.where(both[:, None], weights, 1.0))
    likely = _sigmoid(intercept[:, None] + slope[:, None] * (new.confidence[met] - centre) / spread)
    found = (new_counts[:, met] * likely).sum(axis=1) / new_counts.sum(axis=1)
    return np.asarray(np.where(both, found, np.nan))


def _logistic(
    z: Float[np.ndarray, " n"], right: Float[np.ndarray, " n"], weights: Float[np.ndarray, "b n"]
) -> tuple[Replicates, Replicates]:
    """Intercept and slope of each weighting, by Newton's method with halved steps."""
    share = np.clip(weights @ right / weights.sum(axis=1), 1e-6, 1 - 1e-6)
    intercept, slope = np.log(share / (1 - share)), np.zeros(len(weights))
    for _ in range(_STEPS):
        likely = _sigmoid(intercept[:, None] + slope[:, None] * z)
        miss, curve = weights * (right - likely), weights * likely * (1 - likely)
        up, along = miss.sum(axis=1), miss @ z - slope
        a, b, c = curve.sum(axis=1) + 1e-12, curve @ z, curve @ z**2 + 1
        determinant = a * c - b * b
        step = np.stack([(c * up - b * along) / determinant, (a * along - b * up) / determinant])
        step *= np.minimum(1.0, 2.0 / np.maximum(np.abs(step).max(axis=0), 1e-300))
        intercept, slope = intercept + step[0], slope + step[1]
        if np.abs(step).max() < 1e-10:
            break
    return intercept, slope


def _sigmoid(values: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    return np.asarray(expit(values))


def _estimates(
    rules: dict[str, Callable[[Labelled, Unlabelled, np.ndarray, np.ndarray], np.ndarray]],
    own: Labelled,
    new: Unlabelled,
    resampling: Resampling,
) -> dict[str, Measure]:
    once = np.ones((1, len(own.confidence))), np.ones((1, len(new.confidence)))
    found = {name: [float(np.clip(rule(own, new, *once)[0], 0, 1))] for name, rule in rules.items()}
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in rules}
    some, others, draws = own, new, resampling.draws
    weights = own.units, new.units
    if max(map(len, weights)) > LARGE and independent(own.units) and independent(new.units):
        some, others, weights = _binned(own, new)
        draws = resampling.weighted
    for counts, new_counts in draws(*weights):
        for name, rule in rules.items():
            drawn[name].append(np.clip(rule(some, others, counts, new_counts), 0, 1))
    return {name: Measure(found[name][0], *resampling.interval(np.concatenate(parts))) for name, parts in drawn.items()}


def _binned(own: Labelled, new: Unlabelled) -> tuple[Labelled, Unlabelled, tuple[np.ndarray, np.ndarray]]:
    """Bins of like images in the place of images, and how many each holds."""
    old, others = Binned.of(own.confidence, own.right), Binned.of(new.confidence, np.zeros(len(new.confidence)))
    some = Labelled(old.values, old.marks, np.arange(len(old.values)))
    return some, Unlabelled(others.values, np.arange(len(others.values))), (old.weights, others.weights)


def _check(confidence: np.ndarray) -> None:
    if len(confidence) == 0 or np.isnan(confidence).any() or np.isposinf(confidence).any():
        bad = int((np.isnan(confidence) | np.isposinf(confidence)).sum())
        raise ConfigError(
            f"{len(confidence)} confidences, {bad} of them NaN or +inf: one image or more, with finite confidences, are needed"
        )
