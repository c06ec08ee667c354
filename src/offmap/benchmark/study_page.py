"""What a study leaves behind: the tidy table, a summary for programs, and a page to look at."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import offmap
from offmap.benchmark.study import StudyRun, run_study
from offmap.benchmark.study_cells import COLUMNS, Cells, measure
from offmap.benchmark.study_file import Task, read_study
from offmap.benchmark.study_summary import Summary, apart, counts, summarise
from offmap.benchmark.study_words import KIND, cell
from offmap.decide.risk_coverage import RiskCoverage
from offmap.pipeline.gate import cores
from offmap.pipeline.stream import Progress
from offmap.report.curves import Curve
from offmap.report.study import Point, ShiftPart, StudyReport
from offmap.report.words import count, percent
from offmap.represent.device import resolve_device
from offmap.represent.open import Given, open_encoder

DIGITS = 6
"""Of numbers in the table and the summary."""


def study(
    study_file: str | Path,
    *,
    out: str | Path,
    data: str | Path | None = None,
    encoder: Given = "builtin",
    jobs: int | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Summary:
    """Run a study and write everything into a folder.

    Files: ``results.csv`` and ``.parquet`` (tidy), ``study.json``, ``index.html``, and ``features/``, which a second run uses again.

    Args:
        study_file: a ``.toml`` file or the name of a study that comes with offmap.
        out: folder.
        data: folder that paths of the study are relative to, in place of its own.
        encoder: the frozen backbone: ``builtin`` or ``hub:NAME_OR_DIR``.
        jobs: decode workers; the number of cores if not given.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``.
        progress: called with events.

    Raises:
        ConfigError: the study or the encoder makes no sense.
        DataError: too few images or patients to be divided.
    """
    asked, place, folder = read_study(study_file, data), resolve_device(device), Path(out)
    network = open_encoder(encoder, device=str(place))
    run = run_study(asked, out=folder, encoder=network, jobs=cores() if jobs is None else jobs, device=place, progress=progress)
    run.notes += apart(run)
    cells = measure(run, progress)
    found = summarise(run, cells)
    write(run, cells, found, folder)
    return found


def write(run: StudyRun, cells: Cells, found: Summary, folder: Path) -> None:
    """Everything into the folder."""
    import pyarrow
    from pyarrow import parquet

    folder.mkdir(parents=True, exist_ok=True)
    rows = [{name: _cell(row.get(name)) for name in COLUMNS} for row in cells.rows]
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "results.parquet")
    text = json.dumps(_finite(facts(run, cells, found)), indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "study.json").write_text(text + "\n", encoding="utf-8")
    report(run, cells, found).to_html(folder / "index.html")


def facts(run: StudyRun, cells: Cells, found: Summary) -> dict[str, Any]:
    """The summary for programs, and what it rests on."""
    asked = run.study
    return {
        "study": asked.name,
        "description": asked.description,
        "offmap": offmap.__version__,
        "torch": torch.__version__,
        "encoder": {"name": run.encoder[0], "sha256": run.encoder[1]},
        "networks": {**asdict(asked.plan), "passes": asked.passes, "members": asked.members},
        "seeds": asked.seeds,
        "split": asked.shares,
        "images": counts(run),
        "methods": {name: {task: said.passes[name] for task, said in run.seeds[0].tasks.items()} for name in asked.methods},
        "tasks": {
            task.name: {
                "clinical": task.clinical,
                "column": task.column,
                "made": task.made,
                "classes": run.seeds[0].tasks[task.name].classes,
                "balanced_accuracy": found.accuracy[task.name],
            }
            for task in asked.tasks
        },
        "semantic_ood_is_failure": asked.semantic_ood_is_failure,
        "risk": asked.risk,
        "repeats": asked.repeats,
        "best_task_differs_between_kinds": found.differs,
        "kinds": {kind: asdict(best) for kind, best in found.kinds.items()},
        "shifts": {
            shift.name: {"kind": shift.kind, "best_task": asdict(found.shifts[shift.name]), **asdict(found.contests[shift.name])}
            for shift in asked.shifts
        },
        "kendall_tau": None if found.tau is None else asdict(found.tau),
        "combined": found.combined,
        "chosen_on_in_distribution": {f"{method}, seed {seed}": task for (method, seed), task in cells.chosen.items()},
        "confounded": [asdict(each) for each in found.confounded],
        "sentences": found.sentences,
        "warnings": found.warnings,
    }


def report(run: StudyRun, cells: Cells, found: Summary) -> StudyReport:
    """What the page shows."""
    asked, n = run.study, counts(run)
    means = {task.name: {name: best.means[task.name] for name, best in found.shifts.items()} for task in asked.tasks}
    methods = [name for name in asked.methods if any(key[1] == name for key in cells.values["auroc"])]
    title = {
        None: "One kind of change only",
        True: "The best task depends on the kind of change",
        False: "One task is best for both kinds of change",
    }
    failure = "a wrong answer whatever it is" if asked.semantic_ood_is_failure else "a wrong answer only where it is wrong"
    return StudyReport(
        title=title[found.differs],
        description=asked.description or asked.name,
        sentences=found.sentences,
        warnings=found.warnings,
        facts={
            "Images": f"{n['training']} to train on, {n['held_out']} held out, {n['test']} to test; the same for all tasks",
            "Divisions": f"{count(len(asked.seeds), 'seed')}; numbers are means over them, curves are of the first",
            "Networks": f"frozen {run.encoder[0]}; each task {asked.plan.hidden} hidden units, dropout {asked.plan.dropout:g}, a head",
            "Methods": "; ".join(f"{name}: {run.seeds[0].tasks[asked.clinical.name].passes[name]}" for name in methods),
            "Changed images": f"of a change in what images show: {failure}",
            "Wrong answers": f"of the task {asked.clinical.name}, whichever task the doubt comes from",
            "Intervals": f"95 %, bootstrap with {asked.repeats} samples of images (patients where known), the same for all cells",
        },
        tasks={task.name: _described(run, task, found.accuracy[task.name]) for task in asked.tasks},
        shifts=[_part(run, cells, found, shift.name) for shift in asked.shifts],
        means=means,
        best={name: best.task for name, best in found.shifts.items()},
        kinds={KIND[kind]: (best.task, best.auroc, best.sure, best.means) for kind, best in found.kinds.items()},
        combined=found.combined,
        risk=asked.risk,
    )


def _described(run: StudyRun, task: Task, accuracy: float) -> str:
    classes = run.seeds[0].tasks[task.name].classes
    origin = "made from the images" if task.made else f"column {task.column!r}"
    clinical = "the clinical answer; " if task.clinical else ""
    return f"{clinical}{origin}: {', '.join(classes)}; balanced accuracy {percent(round(accuracy, 3))}"


def _part(run: StudyRun, cells: Cells, found: Summary, name: str) -> ShiftPart:
    asked, contest = run.study, found.contests[name]
    shift = next(shift for shift in asked.shifts if shift.name == name)
    marks = {contest.judge: "judge", contest.detector: "detector"}
    points = [
        Point(task, method, cells.values["auroc"][task, method, where], area, marks.get((task, method), ""))
        for (task, method, where), area in cells.values["augrc"].items()
        if where == name and task in found.accuracy
    ]
    table: dict[str, dict[str, float]] = {}
    for (task, method, where), area in cells.values["auroc"].items():
        if where == name and task in found.accuracy:
            table.setdefault(task, {})[method] = area
    sentence = ""
    if contest.judge is not None and contest.detector_augrc is not None and contest.augrc is not None and contest.tau is not None:
        same = (
            "which is the best judge of the answers too" if contest.judge == contest.detector else f"the best judge {cell(contest.judge)}"
        )
        sentence = f"The best detector is {cell(contest.detector)}, {same}; Kendall's tau of the two orders is {contest.tau.value:.2f}."
    curves, error = _curves(run, cells, found, name)
    n = counts(run)
    return ShiftPart(
        name=name,
        kind=f"changes {KIND[shift.kind]}",
        sentence=sentence,
        points=points,
        curves=curves,
        error=error,
        table=table,
        images=f"{count(n[name], 'changed image')} beside {n['test']} others",
    )


def _curves(run: StudyRun, cells: Cells, found: Summary, name: str) -> tuple[list[Curve], float]:
    contest, clinical = found.contests[name], run.study.clinical.name
    if contest.judge is None:
        return [], math.nan
    own = next(method for method in run.study.methods if (clinical, method, name) in cells.curves)
    wanted = {"best detector": contest.detector, "best judge": contest.judge, "the answer's own": (clinical, own)}
    out, error = [], 0.0
    for label, (task, method) in wanted.items():
        curve = cells.curves[task, method, name]
        error = float(curve.error())
        out.append(_curve(f"{label}: {method} of {task}", curve))
    return out, error


def _curve(name: str, curve: RiskCoverage) -> Curve:
    return Curve(name, curve.coverage, curve.thresholds, curve.selective_risk, curve.generalised_risk)


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DIGITS) if math.isfinite(value) else None
    return value


def _finite(value: Any) -> Any:
    """As JSON can hold it: rounded, no NaN, texts as keys."""
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(each) for each in value]
    return _cell(float(value) if isinstance(value, np.floating) else value)
