"""What a study found: the best task of each kind of shift, whether detectors and abstention agree, and which labels go together."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from offmap.benchmark.guards import file_statistics, told_apart
from offmap.benchmark.study import HELD, TEST, StudyRun
from offmap.benchmark.study_cells import Cells, Key
from offmap.benchmark.study_file import KINDS
from offmap.benchmark.study_images import FEW, STRONG, cramers_v, value
from offmap.core.resampling import Measure

Replicates = Float[np.ndarray, " b"]
LEVEL = 0.95


@dataclass(frozen=True)
class Best:
    """The task whose scores find a shift best, mean over methods.

    Args:
        task: the best one.
        auroc: its mean AUROC.
        sure: share of bootstrap samples in which it is the best one.
        means: AUROC of every task.
    """

    task: str
    auroc: Measure
    sure: float
    means: Mapping[str, float]


@dataclass(frozen=True)
class Contest:
    """The best detector of a shift against the best judge of the clinical answers on it.

    Args:
        detector: task and method of the largest AUROC.
        auroc: of it.
        judge: task and method of the least AUGRC; empty where answers are not known.
        augrc: of it.
        detector_augrc: AUGRC of the best detector.
        extra: AUGRC of the best detector above that of the best judge, paired.
        tau: Kendall's tau over all cells between AUROC and minus AUGRC: 1 = the same order.
    """

    detector: tuple[str, str]
    auroc: Measure
    judge: tuple[str, str] | None = None
    augrc: Measure | None = None
    detector_augrc: Measure | None = None
    extra: Measure | None = None
    tau: Measure | None = None


@dataclass(frozen=True)
class Confounded:
    """Two labels that tell each other.

    Args:
        images: on which images.
        one, other: columns, tasks or "the shift".
        v: Cramer's V.
    """

    images: str
    one: str
    other: str
    v: float


@dataclass(frozen=True)
class Summary:
    """What a study found.

    Args:
        shifts, kinds: the best task for each.
        contests: by shift.
        tau: over all cells and shifts at once: each shift's tau, mean over shifts.
        differs: whether the best task of the two kinds is not the same; None where there is one kind only.
        confounded: labels that go together.
        accuracy: balanced accuracy of each task, mean over seeds.
        combined: AUROC of each combination by shift, mean over methods.
        sentences, warnings: in words.
    """

    shifts: Mapping[str, Best]
    kinds: Mapping[str, Best]
    contests: Mapping[str, Contest]
    tau: Measure | None
    differs: bool | None
    confounded: Sequence[Confounded]
    accuracy: Mapping[str, float]
    combined: Mapping[str, Mapping[str, float]]
    sentences: Sequence[str] = field(default_factory=list)
    warnings: Sequence[str] = field(default_factory=list)


def summarise(run: StudyRun, cells: Cells) -> Summary:
    """The headline of a study."""
    from offmap.benchmark.study_words import sentences, warnings

    study = run.study
    tasks = [task.name for task in study.tasks]
    shifts = {shift.name: _best(cells, tasks, [shift.name]) for shift in study.shifts}
    by_kind = {kind: [shift.name for shift in study.shifts if shift.kind == kind] for kind in KINDS}
    kinds = {kind: _best(cells, tasks, names) for kind, names in by_kind.items() if names}
    taus = {shift.name: _tau(cells, tasks, shift.name) for shift in study.shifts}
    found = Summary(
        shifts=shifts,
        kinds=kinds,
        contests={shift.name: _contest(cells, tasks, shift.name, taus[shift.name]) for shift in study.shifts},
        tau=_mean_tau([pair for pair in taus.values() if pair is not None]),
        differs=len({best.task for best in kinds.values()}) > 1 if len(kinds) > 1 else None,
        confounded=confounded(run),
        accuracy={task: float(np.mean([seeded.tasks[task].accuracy for seeded in run.seeds])) for task in tasks},
        combined=_combined(cells, tasks, list(shifts)),
    )
    return Summary(**{**found.__dict__, "sentences": sentences(run, found), "warnings": [*run.notes, *warnings(run, found)]})


def _measure(value: float, samples: Replicates) -> Measure:
    good = samples[np.isfinite(samples)]
    low, high = np.quantile(good, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(good) else (math.nan, math.nan)
    return Measure(value, float(low), float(high))


def _means(cells: Cells, tasks: Sequence[str], shifts: Sequence[str]) -> dict[str, tuple[float, Replicates]]:
    """AUROC of each task, mean over methods and shifts."""
    out = {}
    for task in tasks:
        keys = [key for key in cells.values["auroc"] if key[0] == task and key[2] in shifts]
        if keys:
            drawn = np.mean([cells.samples["auroc"][key] for key in keys], axis=0)
            out[task] = (float(np.mean([cells.values["auroc"][key] for key in keys])), drawn)
    return out


def _best(cells: Cells, tasks: Sequence[str], shifts: Sequence[str]) -> Best:
    means = _means(cells, tasks, shifts)
    task = max(means, key=lambda name: means[name][0])
    stacked = np.stack([drawn for _, drawn in means.values()])
    sure = float((stacked.argmax(axis=0) == list(means).index(task)).mean())
    return Best(task, _measure(*means[task]), sure, {name: value for name, (value, _) in means.items()})


def _keys(cells: Cells, tasks: Sequence[str], shift: str) -> list[Key]:
    return [key for key in cells.values["augrc"] if key[0] in tasks and key[2] == shift]


def _tau(cells: Cells, tasks: Sequence[str], shift: str) -> tuple[float, Replicates] | None:
    from scipy.stats import kendalltau

    keys = _keys(cells, tasks, shift)
    if len(keys) < 3:
        return None
    found = np.array([cells.values["auroc"][key] for key in keys]), np.array([cells.values["augrc"][key] for key in keys])
    drawn = [np.stack([cells.samples[name][key] for key in keys]) for name in ("auroc", "augrc")]
    samples = np.array([kendalltau(one, -other).statistic for one, other in zip(drawn[0].T, drawn[1].T, strict=True)])
    return float(kendalltau(found[0], -found[1]).statistic), samples


def _mean_tau(pairs: Sequence[tuple[float, Replicates]]) -> Measure | None:
    if not pairs:
        return None
    return _measure(float(np.mean([value for value, _ in pairs])), np.mean([drawn for _, drawn in pairs], axis=0))


def _contest(cells: Cells, tasks: Sequence[str], shift: str, tau: tuple[float, Replicates] | None) -> Contest:
    areas, drawn = cells.values, cells.samples
    detector = max((key for key in areas["auroc"] if key[0] in tasks and key[2] == shift), key=lambda key: areas["auroc"][key])
    auroc = _measure(areas["auroc"][detector], drawn["auroc"][detector])
    keys = _keys(cells, tasks, shift)
    if not keys:
        return Contest(detector[:2], auroc)
    judge = min(keys, key=lambda key: areas["augrc"][key])
    both = {key: _measure(areas["augrc"][key], drawn["augrc"][key]) for key in (judge, detector)}
    extra = _measure(areas["augrc"][detector] - areas["augrc"][judge], drawn["augrc"][detector] - drawn["augrc"][judge])
    return Contest(detector[:2], auroc, judge[:2], both[judge], both[detector], extra, None if tau is None else _measure(*tau))


def _combined(cells: Cells, tasks: Sequence[str], shifts: Sequence[str]) -> dict[str, dict[str, float]]:
    names = [name for name in dict.fromkeys(key[0] for key in cells.values["auroc"]) if name not in tasks]
    return {name: {shift: _means(cells, [name], [shift])[name][0] for shift in shifts} for name in names}


def confounded(run: StudyRun) -> list[Confounded]:
    """Pairs of labels, and of a label and a shift, of which each tells the other; on images as they were given."""
    study, images = run.study, run.images
    columns = [name for name in images.columns if 2 <= len({value(item, name) for item in images.own}) <= FEW]
    labels = {f"column {name!r}": [value(item, name) for item in images.own] for name in columns}
    for task in study.tasks:
        if task.column and (task.rename or f"column {task.column!r}" not in labels):
            labels[f"task {task.name!r}"] = [task.label(value(item, task.column)) for item in images.own]
    found = []
    for (one, a), (other, b) in itertools.combinations(labels.items(), 2):
        strength = cramers_v(a, b)
        if strength >= STRONG:
            found.append(Confounded("in distribution", one, other, strength))
    for shift in study.shifts:
        if shift.damage or shift.paths:
            continue
        items, member = [*images.own, *images.shifts[shift.name]], ["own"] * len(images.own) + ["shift"] * len(images.shifts[shift.name])
        for name in images.columns:
            given = [value(item, name) for item in items]
            strength = cramers_v(given, member) if len(set(given)) <= FEW else 0.0
            if strength >= STRONG:
                found.append(Confounded(f"shift {shift.name!r}", "the shift", f"column {name!r}", strength))
    return found


def apart(run: StudyRun) -> list[str]:
    """Sentences on shifts whose files are told apart whatever they show."""
    own = file_statistics(run.images.own, "in distribution")
    found = [told_apart(own, file_statistics(items, name)) for name, items in run.images.shifts.items()]
    return [f"{each.sentence}." for each in found if each.sentence]


def counts(run: StudyRun) -> dict[str, int]:
    """Images of each part of the first seed and of each shift."""
    truth = run.seeds[0].truth
    total = len(run.images.own)
    return {
        "training": total - len(truth[HELD].failed) - len(truth[TEST].failed),
        **{name: len(found.failed) for name, found in truth.items()},
    }
