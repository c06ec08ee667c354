"""An evaluation for people and for programs: one HTML page that needs no network, CSV tables and a JSON file."""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offmap import __version__
from offmap.core.resampling import Measure
from offmap.report.curves import LINES, Curve, draw
from offmap.report.templating import environment, policy

METRIC_COLUMNS = ("stratum", "value", "confidence", "metric", "estimate", "lo", "hi", "n", "n_failures", "n_ood")
CURVE_COLUMNS = ("confidence", "coverage", "threshold", "selective_risk", "generalised_risk")
ESTIMATE_COLUMNS = ("split", "method", "confidence", "n", "estimate", "lo", "hi", "truth", "truth_lo", "truth_hi")
CURVE_ROWS = 2000
"""Rows of a curve in the table."""

WHOLE = "all"
"""The stratum of all evaluated images."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of one confidence on some of the images.

    Args:
        stratum, value: column and value that choose the images; ``all`` and "" for all of them.
        n, failures, ood: images, failures and out-of-distribution images among them.
    """

    stratum: str
    value: str
    confidence: str
    name: str
    measure: Measure
    n: int
    failures: int
    ood: int

    def row(self) -> list[Any]:
        """Cells of the table."""
        numbers = [_cell(x) for x in (self.measure.value, self.measure.low, self.measure.high)]
        return [self.stratum, self.value, self.confidence, self.name, *numbers, self.n, self.failures, self.ood]

    def facts(self) -> dict[str, Any]:
        """The same as JSON."""
        numbers = [_finite(x) for x in (self.measure.value, self.measure.low, self.measure.high)]
        cells = [self.stratum, self.value, self.confidence, self.name, *numbers, self.n, self.failures, self.ood]
        return dict(zip(METRIC_COLUMNS, cells, strict=True))


@dataclass(frozen=True, slots=True)
class Trial:
    """What a rule did on images that took no part in choosing it.

    Args:
        images: which: a split, or "the other half".
        n, accepted, failed: images, accepted ones, and failures among these.
        low, high: 95 % interval of the risk of accepted images (Clopper-Pearson).
        failures: among all images.
    """

    images: str
    n: int
    accepted: int
    failed: int
    low: float
    high: float
    failures: int

    def facts(self) -> dict[str, Any]:
        """As JSON: how good the rule was, and what reviews were good for; beside review at random and the best order."""
        reviewed, caught = self.n - self.accepted, self.failures - self.failed
        return {
            "images": self.images,
            "n": self.n,
            "accepted": self.accepted,
            "coverage": self.accepted / self.n,
            "risk": self.failed / self.accepted if self.accepted else None,
            "risk_lo": self.low,
            "risk_hi": self.high,
            "reviewed": reviewed,
            "failures_reviewed": caught,
            "failures_per_review": caught / reviewed if reviewed else None,
            "at_random": self.failures / self.n,
            "at_best": min(reviewed, self.failures) / reviewed if reviewed else None,
        }


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule of abstention.

    Args:
        confidence, method: ``learn_then_test`` or ``conformal_risk_control`` on this confidence.
        bound: of the risk.
        probability: with which it is kept; None = in expectation.
        promise: the guarantee in words.
        threshold: an image is accepted when its confidence is above it; None = none is accepted; ``-inf`` = every assessed one.
        coverage, risk: share of the calibration images that is accepted, and share of failures among these.
        n, tested, needed: calibration images; those of them that tested; the fewest that could show anything.
        trials: on other images, split by split.
    """

    confidence: str
    method: str
    bound: float
    probability: float | None
    promise: str
    threshold: float | None
    coverage: float
    risk: float
    n: int
    tested: int
    needed: int
    trials: Sequence[Trial]

    @property
    def accepts(self) -> str:
        """The rule in words; of a score the image must lie below, as a score is higher for what is odder."""
        if self.threshold is None:
            return "none"
        if self.threshold == -math.inf:
            return "every assessed image"
        if self._score:
            return f"{self.confidence} < {-self.threshold:.6g}"
        return f"{self.confidence} > {self.threshold:.6g}"

    @property
    def accepted(self) -> str:
        """Where accepted images lie: ``above`` or ``below`` the limit of the column itself, ``always`` or ``never``."""
        if self.threshold is None:
            return "never"
        return "always" if self.threshold == -math.inf else "below" if self._score else "above"

    @property
    def limit(self) -> float | None:
        """Of the column itself (a score is the negative of its confidence); None where it is not needed."""
        if self.threshold is None or not math.isfinite(self.threshold):
            return None
        return -self.threshold if self._score else self.threshold

    @property
    def _score(self) -> bool:
        return self.confidence.partition(".")[0] == "score"

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "confidence": self.confidence,
            "method": self.method,
            "guaranteed_risk": self.bound,
            "probability": self.probability,
            "promise": self.promise,
            "accepts": self.accepts,
            "threshold": self.threshold if self.threshold is not None and math.isfinite(self.threshold) else None,
            "accepted": self.accepted,
            "limit": self.limit,
            "coverage": self.coverage,
            "calibration": {"n": self.n, "tested": self.tested, "needed": self.needed, "risk": _finite(self.risk)},
            "tests": [trial.facts() for trial in self.trials],
        }


@dataclass(frozen=True, slots=True)
class Estimated:
    """Accuracy of a split, estimated without its labels.

    Args:
        measure: the estimate.
        truth: from the labels, where there are some.
    """

    split: str
    method: str
    confidence: str
    n: int
    measure: Measure
    truth: Measure | None

    def row(self) -> list[Any]:
        """Cells of the table."""
        truth = self.truth or Measure(math.nan, math.nan, math.nan)
        numbers = (self.measure.value, self.measure.low, self.measure.high, truth.value, truth.low, truth.high)
        return [self.split, self.method, self.confidence, self.n, *(_cell(x) for x in numbers)]


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """Everything that an evaluation found.

    Args:
        title, sentences, warnings, facts: in words.
        bound: of the risk.
        metrics: tidy, the stratum ``all`` first.
        curves: of all evaluated images.
        rules: of abstention.
        estimates: of accuracy without labels.
        gate: ``id`` and more of the gate whose scores were evaluated; None where none was named.
    """

    title: str
    sentences: Sequence[str]
    warnings: Sequence[str]
    facts: Mapping[str, str]
    bound: float
    metrics: Sequence[Metric]
    curves: Sequence[Curve]
    rules: Sequence[Rule]
    estimates: Sequence[Estimated]
    gate: Mapping[str, Any] | None = None

    def save(self, folder: Path) -> None:
        """Write ``metrics.csv``, ``risk_coverage.csv``, ``abstention.json``, ``estimated_accuracy.csv`` and ``index.html``."""
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "metrics.csv", METRIC_COLUMNS, (metric.row() for metric in self.metrics))
        _write(folder / "risk_coverage.csv", CURVE_COLUMNS, self._curve_rows())
        _write(folder / "estimated_accuracy.csv", ESTIMATE_COLUMNS, (estimate.row() for estimate in self.estimates))
        text = json.dumps(
            {"gate": self.gate, "rules": [rule.facts() for rule in self.rules]}, indent=2, ensure_ascii=False, allow_nan=False
        )
        (folder / "abstention.json").write_text(text + "\n", encoding="utf-8")
        (folder / "index.html").write_text(self.html(), encoding="utf-8", errors="backslashreplace")

    def html(self) -> str:
        """The page."""
        whole = self.of(WHOLE, "")
        first = next(iter(whole), "")
        context = {
            "csp": policy(styles=("page.css", "ranking.css", "evaluation.css")),
            "version": __version__,
            "report": self,
            "whole": whole,
            "names": list(next(iter(whole.values()), {})),
            "strata": [(m.stratum, m.value) for m in self.metrics if m.confidence == first and m.name == "error" and m.stratum != WHOLE],
            "first": first,
            "tried": [(rule, trial.facts()) for rule in self.rules if rule.threshold is not None for trial in rule.trials],
            "drawing": draw(self.curves, error=whole[first]["error"].measure.value, bound=self.bound) if whole else "",
            "legend": [curve.name for curve in self.curves[:LINES]],
        }
        return environment().get_template("evaluation.html.j2").render(context)

    def of(self, stratum: str, value: str) -> dict[str, dict[str, Metric]]:
        """Metrics by confidence and name on some of the images."""
        found: dict[str, dict[str, Metric]] = {}
        for metric in self.metrics:
            if (metric.stratum, metric.value) == (stratum, value):
                found.setdefault(metric.confidence, {})[metric.name] = metric
        return found

    def _curve_rows(self) -> Iterable[list[Any]]:
        for curve in self.curves:
            thin = curve.thinned(CURVE_ROWS)
            for numbers in zip(thin.coverage, thin.threshold, thin.selective, thin.generalised, strict=True):
                yield [curve.name, *(_cell(float(x)) for x in numbers)]


def _write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _cell(number: float) -> str:
    return "" if not math.isfinite(number) else f"{number:.8g}"


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
