"""When will the classifier fail? Failure prediction, abstention, and accuracy without labels, from a table of predictions."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offmap.core.errors import ConfigError, DataError
from offmap.core.resampling import REPEATS, Measure, Resampling, units_of
from offmap.decide.abstain import Abstention, LearnThenTest
from offmap.decide.measures import detection, measures
from offmap.decide.risk_control import ConformalRiskControl
from offmap.decide.risk_coverage import RiskCoverage
from offmap.pipeline.evaluation_parts import OTHER_HALF, Parts, Rows, divide
from offmap.pipeline.evaluation_words import told
from offmap.pipeline.inputs import PathLike
from offmap.pipeline.predictions import Predictions, read
from offmap.pipeline.saved import read_card
from offmap.report.curves import Curve
from offmap.report.evaluation import WHOLE, Estimated, EvaluationReport, Metric, Rule, Trial
from offmap.report.ranking import refuse_foreign
from offmap.report.table import Table
from offmap.shift.performance import Labelled, Unlabelled, by_confidence, by_probability

SMALLEST = 20
"""Images with known answers below which nothing is told; and a stratum needs half as many."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was found; see ``EvaluationReport`` for its parts (``metrics``, ``curves``, ``rules``, ``estimates``).

    Args:
        report: all of it.
    """

    report: EvaluationReport

    def metric(self, name: str, confidence: str, *, stratum: str = WHOLE, value: str = "") -> Measure:
        """One number with its interval.

        Raises:
            ConfigError: there is no such number.
        """
        found = self.report.of(stratum, value).get(confidence, {}).get(name)
        if found is None:
            known = sorted({m.confidence for m in self.report.metrics}), sorted({m.name for m in self.report.metrics})
            raise ConfigError(f"no metric {name!r} of {confidence!r} on {stratum} {value}; confidences {known[0]}, metrics {known[1]}")
        return found.measure

    def save(self, folder: PathLike) -> Path:
        """Write ``metrics.csv``, ``risk_coverage.csv``, ``abstention.json``, ``estimated_accuracy.csv`` and ``index.html``.

        Raises:
            ConfigError: the folder holds an ``index.html`` that offmap did not write.
        """
        out = Path(folder)
        refuse_foreign(out / "index.html")
        self.report.save(out)
        return out

    def summary(self) -> dict[str, Any]:
        """The main findings as JSON values."""
        return {"title": self.report.title, "facts": dict(self.report.facts), "rules": [rule.facts() for rule in self.report.rules]}


def evaluate(
    predictions: PathLike,
    *,
    scores: PathLike | Table | None = None,
    gate: PathLike | None = None,
    calibration: str = "",
    ood_failure: str = "always",
    risk: float = 0.05,
    probability: float = 0.95,
    testing: str = "fixed_sequence",
    strata: Sequence[str] = (),
    repeats: int = REPEATS,
    seed: int = 0,
) -> Evaluation:
    """Tell how well confidences and scores foretell a classifier's failures, and at which threshold to abstain.

    Args:
        predictions: CSV with ``path`` and either ``label`` and ``prob.<class>`` columns or ``correct``; optional ``confidence``, ``ood``,
            ``split``, ``group`` (images of one patient) and strata.
        scores: score table of ``offmap score`` for the same images.
        gate: folder of the gate that made the scores; its id goes into ``abstention.json``, so that `offmap explain --abstain` can apply
            the rules to one image. Without scores: the gate on the classifier that made the predictions.
        calibration: the split on which thresholds are chosen, and from which accuracy elsewhere is estimated; one of that name
            (calibration, validation, val) if not given; without one a random half of the images chooses thresholds.
        ood_failure: ``always``: an image marked ``ood`` is a failure whatever the answer; ``wrong``: only when the answer is wrong.
        risk: bound of the share of failures among accepted images.
        probability: with which the bound is to be kept.
        testing: ``fixed_sequence`` or ``bonferroni``, see ``LearnThenTest``.
        strata: columns that divide the images; all with at most 20 values if not given.
        repeats: bootstrap samples of the intervals.
        seed: of every random choice.

    Raises:
        ConfigError: a table or an option is not what it should be.
        DataError: too few images.
    """
    rule = LearnThenTest(risk=risk, probability=probability, testing=testing)
    how = Resampling(repeats=repeats, seed=seed)
    named = None if gate is None else _named(gate, scores)
    table = read(predictions, scores=scores, ood_failure=ood_failure, strata=strata)
    parts = divide(table, calibration, seed)
    if len(parts.measured) < SMALLEST:
        n = len(parts.measured)
        raise DataError(f"{n} images with known answers to evaluate on; at least {SMALLEST} are needed, 200 or more are better")
    run = _Run(table, parts, rule, how)
    metrics, rules, estimates = tuple(run.metrics()), tuple(run.rules()), tuple(run.estimates())
    words = told(table, parts, metrics, rules, ood_failure=ood_failure, repeats=repeats)
    report = EvaluationReport(
        **words, bound=risk, metrics=metrics, curves=tuple(run.curves()), rules=rules, estimates=estimates, gate=named
    )
    return Evaluation(report)


def _named(gate: PathLike, scores: PathLike | Table | None) -> dict[str, Any]:
    """What an evaluation says of its gate.

    Raises:
        ConfigError: the scores have other parts than the gate.
        BundleError: the gate cannot be read.
    """
    found = read_card(gate)
    parts = [str(detector["name"]) for detector in found["detectors"]]
    if scores is not None:
        table = scores if isinstance(scores, Table) else Table.load(scores)
        own = [name.removeprefix("score.") for name in table.arrow.column_names if name.startswith("score.")]
        if own != parts:
            raise ConfigError(
                f"the score table has the parts {', '.join(own) or 'none'}, the gate {gate} has {', '.join(parts)}: it is not of this gate"
            )
    return {"id": found["id"], "encoder": found["encoder"]["sha256"], "parts": parts}


@dataclass(frozen=True, eq=False)
class _Run:
    """One evaluation under way."""

    table: Predictions
    parts: Parts
    rule: LearnThenTest
    how: Resampling

    def metrics(self) -> Iterator[Metric]:
        """Tidy, all images first."""
        for stratum, value, rows in self._strata():
            loss, ood, units = self.table.loss[rows], self.table.ood[rows], self._units(rows)
            for name, confidence in self.table.confidences.items():
                found = measures(confidence[rows], loss, units=units, risk=self.rule.risk, resampling=self.how)
                if 0 < ood.sum() < len(ood):
                    found["ood_auroc"] = detection(confidence[rows], ood.astype(np.float64), units=units, resampling=self.how)
                for metric, measure in found.items():
                    yield Metric(stratum, value, name, metric, measure, len(rows), int(loss.sum()), int(ood.sum()))

    def curves(self) -> Iterator[Curve]:
        """On all measured images."""
        rows = self.parts.measured
        for name, confidence in self.table.confidences.items():
            curve = RiskCoverage.of(confidence[rows], self.table.loss[rows])
            yield Curve(name, curve.coverage, curve.thresholds, curve.selective_risk, curve.generalised_risk)

    def rules(self) -> Iterator[Rule]:
        """Both kinds of guarantee for each confidence; one image of each patient calibrates."""
        order = np.random.default_rng([self.how.seed, 2]).permutation(self.parts.calibrate)
        _, first = np.unique(self._units(order), return_index=True)
        rows, seed = order[np.sort(first)], [self.how.seed, 3]
        control = ConformalRiskControl(undetected=self.rule.risk)
        share = f"{100 * self.rule.risk:g} %"
        sure = f"with a probability of {100 * self.rule.probability:g} % at most {share} of the accepted images fail"
        mean = f"on average at most {share} of all images are accepted and fail"
        for name, confidence in self.table.confidences.items():
            surer, loss = confidence[rows], self.table.loss[rows]
            tested = self.rule.choose(surer, loss, generator=np.random.default_rng(seed))
            yield self._rule(name, "learn_then_test", tested, self.rule.probability, sure, self.rule.needed)
            yield self._rule(name, "conformal_risk_control", control.choose(surer, loss), None, mean, control.needed)

    def estimates(self) -> Iterator[Estimated]:
        """Accuracy of every other split, from the calibration split."""
        splits, own = np.array(self.table.splits), self.parts.calibrate
        if not self.parts.split or len(own) < SMALLEST:
            return
        for split in dict.fromkeys(self.table.splits):
            rows = np.flatnonzero(splits == split)
            if split == self.parts.split or len(rows) < SMALLEST:
                continue
            yield from self._estimated(split, own, rows)

    def _estimated(self, split: str, own: Rows, rows: Rows) -> Iterator[Estimated]:
        truth = None
        if np.isfinite(self.table.loss[rows]).all():
            error = measures(np.zeros(len(rows)), self.table.loss[rows], units=self._units(rows), resampling=self.how)["error"]
            truth = Measure(1 - error.value, 1 - error.high, 1 - error.low)
        values: list[tuple[str, np.ndarray, Callable[..., dict[str, Measure]]]] = []
        if len(self.table.probability):
            values.append(("max_probability", self.table.probability, by_probability))
        values += [(name, confidence, by_confidence) for name, confidence in self.table.confidences.items()]
        for name, confidence, rule in values:
            old = Labelled(confidence[own], 1 - self.table.loss[own], self._units(own))
            new = Unlabelled(confidence[rows], self._units(rows))
            for method, measure in rule(old, new, resampling=self.how).items():
                yield Estimated(split, method, name, len(rows), measure, truth)

    def _rule(self, name: str, method: str, chosen: Abstention, probability: float | None, promise: str, needed: int) -> Rule:
        return Rule(
            confidence=name,
            method=method,
            bound=self.rule.risk,
            probability=probability,
            promise=promise,
            threshold=chosen.threshold,
            coverage=chosen.coverage,
            risk=chosen.risk,
            n=chosen.n,
            tested=chosen.tested,
            needed=needed,
            trials=tuple(self._trials(chosen, self.table.confidences[name])),
        )

    def _trials(self, chosen: Abstention, confidence: np.ndarray) -> Iterator[Trial]:
        rows = self.parts.trial
        of = np.array(self.table.splits)[rows] if self.parts.split else np.full(len(rows), OTHER_HALF)
        for name in dict.fromkeys(of.tolist()):
            inside = rows[of == name]
            yield _try(name, chosen, confidence[inside], self.table.loss[inside])

    def _units(self, rows: Rows) -> Rows:
        return units_of([self.table.groups[row] for row in rows.tolist()])

    def _strata(self) -> Iterator[tuple[str, str, Rows]]:
        rows = self.parts.measured
        yield WHOLE, "", rows
        columns = {"split": self.table.splits, "ood": tuple(str(int(x)) for x in self.table.ood.tolist()), **self.table.strata}
        for column, values in columns.items():
            of = np.array(values)[rows]
            there = sorted(set(of.tolist()))
            for value in there if len(there) > 1 else []:
                inside = rows[of == value]
                if len(inside) >= SMALLEST // 2:
                    yield column, value, inside


def _try(images: str, chosen: Abstention, confidence: np.ndarray, loss: np.ndarray) -> Trial:
    """The rule on images that took no part in choosing it."""
    from scipy.stats import beta

    kept = chosen.accepts(confidence)
    n, failed = int(kept.sum()), round(float(loss[kept].sum()))
    low = float(beta.ppf(0.025, failed, n - failed + 1)) if failed else 0.0
    high = float(beta.ppf(0.975, failed + 1, n - failed)) if failed < n else 1.0
    return Trial(images, len(loss), n, failed, low, high, round(float(loss.sum())))
