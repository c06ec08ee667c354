"""How well scores separate: AUROC, AUPR and FPR95, with bootstrap intervals over images. Higher score = more OOD, everywhere."""

import numpy as np
from jaxtyping import Float, Float32, Shaped

from offmap.core.errors import ConfigError

Scores = Shaped[np.ndarray, " _"]


def auroc(own: Scores, other: Scores) -> float:
    """Chance that an OOD image scores higher than an in-distribution one, ties counted half; OOD is the positive class.

    Args:
        own: scores of in-distribution images.
        other: scores of out-of-distribution images.

    Raises:
        ConfigError: one of them is empty, or not finite.

    Source: Hanley and McNeil, Radiology 143, 1982 (the Mann-Whitney form).
    """
    from scipy.stats import rankdata

    own, other = _checked(own, other)
    ranks = rankdata(np.concatenate([own, other]))[len(own) :]
    return float((ranks.sum() - len(other) * (len(other) + 1) / 2) / (len(own) * len(other)))


def aupr_out(own: Scores, other: Scores) -> float:
    """Average precision with OOD as the positive class; depends on how many images of each kind there are."""
    own, other = _checked(own, other)
    return _average_precision(np.concatenate([own, other]), len(own))


def aupr_in(own: Scores, other: Scores) -> float:
    """Average precision with in-distribution as the positive class (low scores first)."""
    own, other = _checked(own, other)
    return _average_precision(-np.concatenate([other, own]), len(other))


def fpr95_ood_positive(own: Scores, other: Scores) -> float:
    """Share of in-distribution images flagged at the highest threshold that catches 95 % of OOD (the convention of OpenOOD)."""
    own, other = _checked(own, other)
    caught = np.sort(other)[::-1][int(np.ceil(0.95 * len(other))) - 1]
    return float((own >= caught).mean())


def fpr95_id_positive(own: Scores, other: Scores) -> float:
    """Share of OOD that passes at the lowest threshold that keeps 95 % of in-distribution images (the convention of most papers)."""
    own, other = _checked(own, other)
    kept = np.sort(own)[int(np.ceil(0.95 * len(own))) - 1]
    return float((other <= kept).mean())


def resampled(count: int, *, repeats: int, rng: np.random.Generator) -> Float32[np.ndarray, "{repeats} {count}"]:
    """How often each of ``count`` images is drawn in each of ``repeats`` bootstrap samples of the same size."""
    return rng.multinomial(count, np.full(count, 1 / count), size=repeats).astype(np.float32)


def auroc_replicates(
    own: Scores, other: Scores, own_counts: Float[np.ndarray, "b _n"], other_counts: Float[np.ndarray, "b _m"]
) -> Float[np.ndarray, " b"]:
    """AUROC of each bootstrap sample; NaN where a sample holds no image of one kind.

    Args:
        own, other: as ``auroc``.
        own_counts, other_counts: how often each image is drawn, from ``resampled``. Images that take part in several
            comparisons keep their counts, so that means over comparisons get the right interval.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentile interval over these).
    """
    own, other = _checked(own, other)
    wins = (other[None, :] > own[:, None]).astype(np.float32) + 0.5 * (other[None, :] == own[:, None]).astype(np.float32)
    total = own_counts.sum(axis=1).astype(np.float64) * other_counts.sum(axis=1)
    won = ((own_counts.astype(np.float32) @ wins) * other_counts).sum(axis=1, dtype=np.float64)
    share: np.ndarray = np.divide(won, total, out=np.full(len(total), np.nan), where=total > 0)
    return share


def interval(replicates: Float[np.ndarray, " b"], *, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap replicates."""
    low, high = np.nanquantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _average_precision(scores: np.ndarray, negatives: int) -> float:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(np.arange(len(scores)) >= negatives, scores))


def _checked(own: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    own, other = own.astype(np.float64), other.astype(np.float64)
    for name, scores in (("in-distribution", own), ("out-of-distribution", other)):
        if scores.size == 0 or not np.isfinite(scores).all():
            raise ConfigError(
                f"{scores.size} {name} scores, {int((~np.isfinite(scores)).sum())} of them not finite: finite ones are needed"
            )
    return own, other
