"""Every cell of a study, task by method by shift and seed: how well it finds the shift, and how well it foretells wrong answers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from offmap.benchmark import bootstrap, metrics
from offmap.benchmark.bootstrap import METRICS
from offmap.benchmark.study import HELD, TEST, SeedRun, StudyRun, Truth
from offmap.benchmark.study_file import Shift
from offmap.core.resampling import units_of
from offmap.decide.risk_coverage import RiskCoverage
from offmap.pipeline.stream import Progress

AREAS = ("error", "aurc", "e_aurc", "augrc", "e_augrc", "fail_auroc", "coverage_at_risk")
COLUMNS = (
    *("study", "task", "method", "shift", "kind", "seed", "passes", "n_id", "n_shift", "shift_share"),
    *(name + end for name in METRICS for end in ("", "_lo", "_hi")),
    *("n_judged", "n_failures"),
    *(name + end for name in AREAS for end in ("", "_lo", "_hi")),
    *("status", "reason"),
)
"""Columns of the tidy table. The shift is the positive class of AUROC; areas are of the clinical answers on test and shifted images."""

MAXIMUM, MEAN, FISHER, CHOSEN = "all: maximum", "all: mean", "all: Fisher", "all: chosen"
COMBINED = (MAXIMUM, MEAN, FISHER, CHOSEN)
"""Scores made of all tasks, each calibrated on held-out images first; ``chosen`` is one task, picked on in-distribution images only."""

Key = tuple[str, str, str]
"""Task (or combination), method, shift."""

Scores = Float[np.ndarray, " _"]
Replicates = Float[np.ndarray, " b"]


@dataclass(eq=False)
class Cells:
    """The tidy table, and what summaries are made of.

    Args:
        rows: by ``COLUMNS``.
        values: ``auroc`` and ``augrc`` of each cell, mean over seeds; a cell without one is not there.
        samples: the same for each bootstrap sample, paired over all cells.
        chosen: task that each method chose on in-distribution images, by seed.
        curves: risk-coverage curve of each cell, of the first seed.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    values: dict[str, dict[Key, float]] = field(default_factory=lambda: {"auroc": {}, "augrc": {}})
    samples: dict[str, dict[Key, Replicates]] = field(default_factory=lambda: {"auroc": {}, "augrc": {}})
    chosen: dict[tuple[str, int], str] = field(default_factory=dict)
    curves: dict[Key, RiskCoverage] = field(default_factory=dict)


def p_values(held: Scores, scores: Scores) -> Scores:
    """Share of held-out in-distribution scores that are as high, ``(1 + #{held >= s}) / (n + 1)``, in (0, 1]; makes tasks comparable."""
    above = len(held) - np.searchsorted(np.sort(held), scores, side="left")
    return np.asarray((1 + above) / (len(held) + 1))


def combined(parts: Mapping[str, tuple[Scores, Scores]], chosen: str) -> dict[str, Scores]:
    """Scores over all tasks, higher = more OOD.

    Args:
        parts: for each task its held-out scores, and those to be combined.
        chosen: the task that was picked.
    """
    p = np.stack([p_values(held, scores) for held, scores in parts.values()])
    return {
        MAXIMUM: 1 - p.min(axis=0),
        MEAN: 1 - p.mean(axis=0),
        FISHER: -2 * np.log(p).sum(axis=0),
        CHOSEN: 1 - p[list(parts).index(chosen)],
    }


def measure(run: StudyRun, progress: Progress | None = None) -> Cells:
    """Every metric of every cell, with bootstrap intervals over images (patients where known)."""
    out = Cells()
    found: dict[str, dict[Key, list[tuple[float, Replicates]]]] = {"auroc": {}, "augrc": {}}
    for number, seeded in enumerate(run.seeds):
        by_shift = {shift.name: _draws(run, seeded, shift) for shift in run.study.shifts}
        if progress is not None:
            progress({"event": "measure", "done": number, "total": len(run.seeds)})
        for task, method, scores in _scored(run, seeded, out):
            for shift in run.study.shifts:
                row, samples = _cell(run, seeded, shift, scores, by_shift[shift.name], out, (task, method, shift.name))
                passes = seeded.tasks[task].passes[method] if task in seeded.tasks else "of all tasks"
                out.rows.append({**_base(run, seeded, shift), "task": task, "method": method, "passes": passes, **row, "status": "ok"})
                for name, drawn in samples.items():
                    found[name].setdefault((task, method, shift.name), []).append((row[name], drawn))
        for task, said in seeded.tasks.items():
            for method, reason in said.reasons.items():
                lost = {"task": task, "method": method, "status": "not_run", "reason": reason}
                out.rows += [{**_base(run, seeded, shift), **lost} for shift in run.study.shifts]
    for name, by_key in found.items():
        for key, several in by_key.items():
            if len(several) == len(run.seeds):
                out.values[name][key] = float(np.mean([value for value, _ in several]))
                out.samples[name][key] = np.mean([drawn for _, drawn in several], axis=0)
    return out


def _base(run: StudyRun, seeded: SeedRun, shift: Shift) -> dict[str, Any]:
    n_id, n_shift = len(seeded.truth[TEST].failed), len(seeded.truth[shift.name].failed)
    return {
        "study": run.study.name,
        "shift": shift.name,
        "kind": shift.kind,
        "seed": seeded.seed,
        "n_id": n_id,
        "n_shift": n_shift,
        "shift_share": n_shift / (n_id + n_shift),
    }


def _scored(run: StudyRun, seeded: SeedRun, out: Cells) -> Iterator[tuple[str, str, Mapping[str, Scores]]]:
    """Task, method and scores of each set; after the tasks their combinations."""
    methods = list(dict.fromkeys(name for said in seeded.tasks.values() for name in said.scores))
    for task, said in seeded.tasks.items():
        for method, scores in said.scores.items():
            yield task, method, scores
    for method in methods:
        parts = {task: said.scores[method] for task, said in seeded.tasks.items() if method in said.scores}
        chosen = choose(parts, seeded.truth[HELD])
        out.chosen[method, seeded.seed] = chosen
        sets = next(iter(parts.values()))
        made = {name: combined({task: (found[HELD], found[name]) for task, found in parts.items()}, chosen) for name in sets}
        for kind in COMBINED:
            yield kind, method, {name: found[kind] for name, found in made.items()}


def choose(parts: Mapping[str, Mapping[str, Scores]], held: Truth) -> str:
    """The task whose score leaves the fewest wrong clinical answers undetected among held-out in-distribution images (least AUGRC)."""
    known = np.isfinite(held.failed)
    areas = {task: float(RiskCoverage.of(-found[HELD][known], held.failed[known]).augrc()) for task, found in parts.items()}
    return min(areas, key=lambda task: areas[task])


@dataclass(frozen=True, eq=False)
class _Draws:
    own: Float[np.ndarray, "b n"]
    other: Float[np.ndarray, "b m"]


def _draws(run: StudyRun, seeded: SeedRun, shift: Shift) -> _Draws:
    """How often each image is drawn; a damaged image is drawn with the one that it was made of, a patient with all images."""
    own, other = seeded.truth[TEST], seeded.truth[shift.name]
    names = (f"test {seeded.seed}", shift.name)
    repeats, sizes = run.study.repeats, (len(own.failed), len(other.failed))
    first = bootstrap.draws(names[0], sizes[0], repeats=repeats, patients=_patients(own.patients))
    if shift.damage and sizes[0] == sizes[1]:
        return _Draws(first, first)
    return _Draws(first, bootstrap.draws(names[1], sizes[1], repeats=repeats, patients=_patients(other.patients)))


def _patients(patients: Sequence[str]) -> Sequence[str]:
    return patients if int(units_of(patients).max(initial=0)) + 1 < len(patients) else ()


def _cell(
    run: StudyRun, seeded: SeedRun, shift: Shift, scores: Mapping[str, Scores], draws: _Draws, out: Cells, key: Key
) -> tuple[dict[str, Any], dict[str, Replicates]]:
    own, other = scores[TEST], scores[shift.name]
    drawn = bootstrap.replicates(own, other, draws.own, draws.other)
    row = {name: getattr(metrics, name)(own, other) for name in METRICS}
    row |= _ends(bootstrap.interval(drawn))
    samples = {"auroc": drawn["auroc"]}
    failed = np.concatenate([seeded.truth[TEST].failed, seeded.truth[shift.name].failed])
    known = np.isfinite(failed)
    row |= {"n_judged": int(known.sum()), "n_failures": int(np.nansum(failed))}
    if not np.isfinite(seeded.truth[shift.name].failed).any():
        return row | {"reason": "the clinical answer is not known on this shift"}, samples
    counts = np.concatenate([draws.own, draws.other], axis=1)[:, known]
    confidence = -np.concatenate([own, other])[known].astype(np.float64)
    curve = RiskCoverage.of(confidence, failed[known])
    areas = _areas(curve, run.study.risk)
    several = _areas(RiskCoverage.of(confidence, failed[known], counts), run.study.risk)
    row |= {name: float(value) for name, value in areas.items()} | _ends(bootstrap.interval(several))
    if seeded is run.seeds[0]:
        out.curves[key] = curve
    return row, samples | {"augrc": several["augrc"]}


def _areas(curve: RiskCoverage, risk: float) -> dict[str, np.ndarray]:
    return {**{name: getattr(curve, name)() for name in AREAS[:-1]}, "coverage_at_risk": curve.coverage_at(risk)}


def _ends(intervals: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    return {f"{name}_{end}": value for name, pair in intervals.items() for end, value in zip(("lo", "hi"), pair, strict=True)}
