"""Every measure of failure prediction with a bootstrap interval over images, or over patients."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int, Shaped

from offmap.core.resampling import LARGE, Binned, Measure, Resampling, independent
from offmap.decide.risk_coverage import RiskCoverage, checked

COVERAGES = (0.8, 0.9, 0.95)
"""Coverages at which the selective risk is told."""

RISK = 0.05
"""Selective risk at which the coverage is told."""

Values = Shaped[np.ndarray, " _"]


def measures(
    confidence: Values,
    loss: Values,
    *,
    units: Int[np.ndarray, " n"] | None = None,
    coverages: Sequence[float] = COVERAGES,
    risk: float = RISK,
    resampling: Resampling | None = None,
) -> dict[str, Measure]:
    """``error``, ``aurc``, ``e_aurc``, ``augrc``, ``e_augrc``, ``fail_auroc``, ``risk_at_<coverage>``, ``coverage_at_risk_<risk>``.

    Where no failure was seen the resamples hold none either; the upper end of a risk is then that of an exact binomial test without a
    failure, ``1 - ((1 - level) / 2) ** (1 / n)`` with n accepted units, and areas have no interval.

    Args:
        confidence, loss: as ``RiskCoverage.of``; losses of 0 and 1.
        units: number of each image's unit, as ``core.resampling.units_of``; each image its own if not given.
        coverages, risk: operating points.
        resampling: how intervals are made.

    Raises:
        ConfigError: as ``RiskCoverage.of``.
    """
    how = resampling or Resampling()
    surer, losses = checked(confidence, loss)
    unit = np.arange(len(surer)) if units is None else units
    value = {name: float(found) for name, found in _read(RiskCoverage.of(surer, losses), coverages, risk).items()}
    drawn = [_read(curve, coverages, risk) for curve in _replicates(surer, losses, unit, how)]
    out = {}
    for name, number in value.items():
        low, high = how.interval(np.concatenate([part[name] for part in drawn]))
        out[name] = Measure(number, low, high)
    count = int(unit.max()) + 1
    return {name: _widened(name, found, losses, count, how.level) for name, found in out.items()}


def detection(confidence: Values, ood: Values, *, units: Int[np.ndarray, " n"], resampling: Resampling) -> Measure:
    """AUROC with which low confidence finds out-of-distribution images (1 in ``ood``); NaN where there is one kind only."""
    surer, odd = checked(confidence, ood)
    replicates = np.concatenate([curve.fail_auroc() for curve in _replicates(surer, odd, units, resampling)])
    return Measure(float(RiskCoverage.of(confidence, ood).fail_auroc()), *resampling.interval(replicates))


def _replicates(surer: np.ndarray, losses: np.ndarray, units: np.ndarray, how: Resampling) -> Iterator[RiskCoverage]:
    """Curves of the bootstrap samples, a few at a time; of many independent images from bins of like confidence."""
    if len(surer) > LARGE and independent(units) and np.isin(losses, (0, 1)).all():
        bins = Binned.of(surer, losses)
        for (counts,) in how.weighted(bins.weights):
            yield RiskCoverage.of(bins.values, bins.marks, counts)
        return
    for (counts,) in how.draws(units):
        yield RiskCoverage.of(surer, losses, counts)


def _read(curve: RiskCoverage, coverages: Sequence[float], risk: float) -> dict[str, np.ndarray]:
    found = {name: getattr(curve, name)() for name in ("error", "aurc", "e_aurc", "augrc", "e_augrc", "fail_auroc")}
    found |= {f"risk_at_{coverage:g}": curve.risk_at(coverage) for coverage in coverages}
    return found | {f"coverage_at_risk_{risk:g}": curve.coverage_at(risk)}


def _widened(name: str, found: Measure, losses: np.ndarray, units: int, level: float) -> Measure:
    """An interval of no width is no evidence of certainty."""
    none, every = not losses.any(), bool(losses.all())
    share = 1.0 if name == "error" else float(name.removeprefix("risk_at_")) if name.startswith("risk_at_") else 0.0
    if share and found.value in (0.0, 1.0) and found.low == found.high:
        slack = 1 - ((1 - level) / 2) ** (1 / max(1, round(share * units)))
        return replace(found, high=slack) if found.value == 0 else replace(found, low=1 - slack)
    return replace(found, low=float("nan"), high=float("nan")) if (none or every) and not share else found
