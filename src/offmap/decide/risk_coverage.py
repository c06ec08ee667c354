"""How well a confidence foretells failures: risk-coverage curves and their areas (Traub et al., NeurIPS 2024, arXiv:2407.01032).

Images are accepted from the most confident one down; images of equal confidence are accepted together. Areas are shares in [0, 1]
(papers often print them times 1000), and all of them depend on the share of failures among the images.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

from offmap.core.errors import ConfigError

Values = Shaped[np.ndarray, " _"]
Replicates = Float[np.ndarray, "*b"]

_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """What is accepted and how much of it fails, at each distinct confidence from the highest down.

    A leading axis, if there is one, holds bootstrap samples; each metric then has one value a sample. A metric that does not
    exist (no failures, nothing but failures, no image) is NaN.

    Args:
        accepted: images at or above the g-th distinct confidence.
        failed: sum of the losses of those images (the number of failures, where losses are 0 and 1).
        thresholds: the distinct confidences, falling.
    """

    accepted: Float[np.ndarray, "*b g"]
    failed: Float[np.ndarray, "*b g"]
    thresholds: Float[np.ndarray, " g"]

    @classmethod
    def of(cls, confidence: Values, loss: Values, counts: Float[np.ndarray, "b n"] | None = None) -> "RiskCoverage":
        """The curve of some images.

        Args:
            confidence: higher = surer; ``-inf`` for an image that was not assessed and is accepted last.
            loss: 1 = failure, 0 = right, or a loss between.
            counts: how often each image is drawn in each bootstrap sample; each once if not given.

        Raises:
            ConfigError: no image, different lengths, NaN or ``+inf``, or a loss outside [0, 1].
        """
        surer, losses = checked(confidence, loss)
        order = np.argsort(-surer, kind="stable")
        surer = surer[order]
        ends = np.append(np.flatnonzero(surer[1:] != surer[:-1]), len(surer) - 1)
        if counts is None:
            return cls((ends + 1).astype(np.float64), np.cumsum(losses[order])[ends], surer[ends])
        drawn = counts[:, order].astype(np.float64)
        return cls(np.cumsum(drawn, axis=1)[:, ends], np.cumsum(drawn * losses[order], axis=1)[:, ends], surer[ends])

    @property
    def coverage(self) -> Float[np.ndarray, "*b g"]:
        """Share of images that are accepted."""
        return _ratio(self.accepted, self.accepted[..., -1:])

    @property
    def selective_risk(self) -> Float[np.ndarray, "*b g"]:
        """Share of the accepted images that fail; NaN where none is accepted."""
        return _ratio(self.failed, self.accepted)

    @property
    def generalised_risk(self) -> Float[np.ndarray, "*b g"]:
        """Share of all images that are accepted and fail: undetected failures."""
        return _ratio(self.failed, self.accepted[..., -1:])

    def error(self) -> Replicates:
        """Share of all images that fail, in [0, 1]."""
        return np.asarray(self.selective_risk[..., -1])

    def aurc(self) -> Replicates:
        """Area under selective risk over coverage; the risk of the most confident images is held down to coverage 0."""
        risk = self.selective_risk
        before = np.concatenate([risk[..., :1], risk[..., :-1]], axis=-1)
        mean = (risk + np.where(np.isnan(before), risk, before)) / 2
        return self._area(np.nan_to_num(mean))

    def augrc(self) -> Replicates:
        """Area under generalised risk over coverage: the mean risk of an undetected failure; error / 2 for a random confidence."""
        risk = self.generalised_risk
        return self._area(risk - np.diff(risk, axis=-1, prepend=0.0) / 2)

    def e_aurc(self) -> Replicates:
        """AURC above that of the best order, ``err + (1 - err) ln(1 - err)``; for losses of 0 and 1.

        The best value is that of a large sample, so a small one can fall below 0 by a trifle.

        Source: Geifman et al., ICLR 2019, arXiv:1805.08206.
        """
        from scipy.special import xlog1py

        error = self.error()
        return np.asarray(self.aurc() - error - xlog1py(1 - error, -error))

    def e_augrc(self) -> Replicates:
        """AUGRC above that of the best order, ``err**2 / 2``; for losses of 0 and 1."""
        return np.asarray(self.augrc() - self.error() ** 2 / 2)

    def fail_auroc(self) -> Replicates:
        """Chance that a right image is more confident than a failure, ties counted half; for losses of 0 and 1. No OOD detection."""
        total, failures = self.accepted[..., -1:], self.failed[..., -1:]
        wrong = np.diff(self.failed, axis=-1, prepend=0.0)
        right = np.diff(self.accepted, axis=-1, prepend=0.0) - wrong
        won = (right * (failures - self.failed + wrong / 2)).sum(axis=-1, keepdims=True)
        return np.asarray(_ratio(won, (total - failures) * failures)[..., 0])

    def risk_at(self, coverage: float) -> Replicates:
        """Selective risk at the smallest coverage of the curve that reaches ``coverage``, in (0, 1].

        Raises:
            ConfigError: coverage outside (0, 1].
        """
        if not 0 < coverage <= 1:
            raise ConfigError(f"coverage = {coverage} must lie in (0, 1]")
        at = np.argmax(self.accepted >= (coverage - _ROUNDING) * self.accepted[..., -1:], axis=-1)
        return np.asarray(np.take_along_axis(self.selective_risk, at[..., None], axis=-1)[..., 0])

    def coverage_at(self, risk: float) -> Replicates:
        """Largest coverage whose selective risk, as seen, is at most ``risk``; 0 where there is none. It guarantees nothing.

        Raises:
            ConfigError: risk outside [0, 1].
        """
        if not 0 <= risk <= 1:
            raise ConfigError(f"risk = {risk} must lie in [0, 1]")
        fine = self.failed <= risk * self.accepted + _ROUNDING
        return np.asarray(np.max(np.where(fine, self.coverage, 0.0), axis=-1))

    def _area(self, mean: Float[np.ndarray, "*b g"]) -> Replicates:
        width = np.diff(self.coverage, axis=-1, prepend=0.0)
        return np.asarray((mean * width).sum(axis=-1))


def augrc_of(fail_auroc: float, error: float) -> float:
    """AUGRC in closed form, ``(1 - AUROC) acc (1 - acc) + (1 - acc)**2 / 2``; for losses of 0 and 1.

    Source: Traub et al., NeurIPS 2024, arXiv:2407.01032. Error 0 or 1 needs no AUROC.
    """
    spread = error * (1 - error)
    return (1 - fail_auroc) * spread + error**2 / 2 if spread > 0 else error**2 / 2


def checked(confidence: Values, loss: Values) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Both as float64.

    Raises:
        ConfigError: as ``RiskCoverage.of``.
    """
    surer, losses = np.asarray(confidence, dtype=np.float64), np.asarray(loss, dtype=np.float64)
    if len(surer) != len(losses) or len(surer) == 0:
        raise ConfigError(
            f"{len(surer)} confidences and {len(losses)} losses: one of each for every image, and one image or more, expected"
        )
    bad = np.flatnonzero(np.isnan(surer) | np.isposinf(surer))
    if len(bad):
        raise ConfigError(f"confidences are NaN or infinite in rows {bad[:5].tolist()}; -inf stands for an image that was not assessed")
    bad = np.flatnonzero(~((losses >= 0) & (losses <= 1)))
    if len(bad):
        raise ConfigError(f"losses must lie in [0, 1] (1 = failure); row {bad[0]} has {losses[bad[0]]}")
    return surer, losses


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(bottom > 0, top / bottom, np.nan))
