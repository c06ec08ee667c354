"""An evaluation in words."""

from collections.abc import Sequence
from typing import Any

from offmap.pipeline.evaluation_parts import Parts
from offmap.pipeline.predictions import Predictions
from offmap.report.evaluation import WHOLE, Metric, Rule, Trial
from offmap.report.words import count, percent

TRAINING = ("train", "training", "fit")


def told(
    table: Predictions, parts: Parts, metrics: Sequence[Metric], rules: Sequence[Rule], *, ood_failure: str, repeats: int
) -> dict[str, Any]:
    """Title, sentences, warnings and facts of the page."""
    return {
        "title": _title(rules[0]),
        "sentences": [*_tried(rules[0]), *_best(metrics)],
        "warnings": [*_warnings(table, parts, metrics, rules), *table.notes],
        "facts": _facts(table, parts, metrics, ood_failure, repeats),
    }


def _title(rule: Rule) -> str:
    if rule.threshold is None:
        return f"No share of the images can be accepted with a risk that is shown to stay at or below {percent(rule.bound)}"
    chance = f" with a probability of {percent(rule.probability)}" if rule.probability else ""
    return (
        f"Accept {rule.accepts}: {percent(rule.coverage)} of the calibration images. "
        f"Of images drawn like them, at most {percent(rule.bound)} of the accepted fail{chance}"
    )


def _tried(rule: Rule) -> list[str]:
    return [_outcome(trial) for trial in rule.trials if trial.accepted]


def _outcome(trial: Trial) -> str:
    risk = f"{percent(trial.failed / trial.accepted)} (95 % interval {percent(trial.low)} to {percent(trial.high)})"
    return (
        f"Tried on {trial.images}, {count(trial.n, 'image')}: {percent(trial.accepted / trial.n)} were accepted, of which {risk} failed; "
        f"{trial.failures - trial.failed} of {count(trial.failures, 'failure')} went to review."
    )


def _best(metrics: Sequence[Metric]) -> list[str]:
    """Who foretells failures best, and who finds out-of-distribution images best, which need not be the same."""
    whole = [m for m in metrics if m.stratum == WHOLE]
    areas = {m.confidence: m.measure for m in whole if m.name == "augrc"}
    found = {m.confidence: m.measure.value for m in whole if m.name == "ood_auroc"}
    first = min(areas, key=lambda name: areas[name].value)
    out = []
    if len(areas) > 1:
        span = f" (95 % interval {areas[first].low:.3f} to {areas[first].high:.3f})" if areas[first].low == areas[first].low else ""
        out.append(
            f"Of {len(areas)} confidences {first} has the lowest risk of an undetected failure: AUGRC {areas[first].value:.3f}{span}."
        )
    if len(found) > 1:
        best = max(found, key=lambda name: found[name])
        tail = "" if best == first else ": the best detector of what is strange is not the best judge of the answers"
        out.append(f"{best} finds the images marked out-of-distribution best: AUROC {found[best]:.3f}{tail}.")
    return out


def _warnings(table: Predictions, parts: Parts, metrics: Sequence[Metric], rules: Sequence[Rule]) -> list[str]:
    out = []
    if parts.split and len(parts.trial) == 0:
        out.append(f"Every image with a known answer is in the calibration split {parts.split!r}: thresholds are tried on no others.")
    out += [
        f"On {trial.images} more than {percent(rules[0].bound)} of the accepted images failed, and not by chance: these images are not "
        "like those that chose the threshold, and the promise does not hold for them."
        for trial in rules[0].trials
        if rules[0].threshold is not None and trial.low > rules[0].bound
    ]
    if table.ood[parts.trial].any() and not table.ood[parts.calibrate].any():
        out.append("Images marked out-of-distribution are measured, but none chose the thresholds: no promise covers them.")
    trained = [name for name in dict.fromkeys(table.splits) if name.lower() in TRAINING and name != parts.split]
    if trained:
        out.append(
            f"The split {trained[0]!r} is evaluated too. A classifier is surer, and more often right, on images that it was trained on."
        )
    if parts.split.lower() in TRAINING:
        out.append("Thresholds are chosen on images that the classifier was trained on: what they promise does not hold for new ones.")
    own, other = ({table.groups[row] for row in rows.tolist()} - {""} for rows in (parts.calibrate, parts.trial))
    if own & other:
        out.append(f"{count(len(own & other), 'patient')} choose thresholds and try them too: the trial looks better than it is.")
    if not any(table.groups):
        out.append("Every image counts as independent. If patients have several, name them in the column 'group'.")
    n, failures = metrics[0].n, metrics[0].failures
    if failures in (0, n):
        out.append(f"{'None' if failures == 0 else 'All'} of the {n} images failed: nothing can tell failures from right answers here.")
    if rules[0].tested < rules[0].needed:
        out.append(f"{rules[0].tested} images test the thresholds; even without a failure {rules[0].needed} accepted ones are needed.")
    return out


def _facts(table: Predictions, parts: Parts, metrics: Sequence[Metric], ood_failure: str, repeats: int) -> dict[str, str]:
    first, patients = metrics[0], len({g for g in table.groups if g})
    odd = int(table.ood[parts.measured].sum())
    counted = "a failure whatever the answer" if ood_failure == "always" else "a failure only when the answer is wrong"
    half = "a random half of the images, the other half tries them"
    return {
        "Images": f"{count(first.n, 'image')} with known answers, {count(first.failures, 'failure')}",
        "Out-of-distribution": f"{odd:,} of them; {counted}" if odd else "none marked",
        "Thresholds chosen on": f"split {parts.split!r}, {count(len(parts.calibrate), 'image')}" if parts.split else half,
        "Patients": f"{patients:,}; drawn together, one image each for thresholds" if patients else "not given",
        "Intervals": f"95 %, bootstrap with {repeats:,} samples; of tried rules Clopper-Pearson",
    }
