"""offmap study: tasks by methods of uncertainty by shifts on one set of images."""

from pathlib import Path
from typing import Annotated

import typer

from offmap.cli import options, outputs
from offmap.cli.exits import say
from offmap.cli.progress import emit, progress
from offmap.cli.tables import show
from offmap.core.allocator import keep_freed_memory

StudyFile = Annotated[
    str, typer.Argument(metavar="STUDY", help="A .toml file, or the name of a study that comes with offmap.", show_default=False)
]
Data = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="Folder that the paths of the study are relative to, in place of its own.")
]


def study(
    study: StudyFile,
    *,
    out: options.Out,
    data: Data = None,
    encoder: options.Encoder = None,
    jobs: options.Jobs = None,
    device: options.Device = "auto",
    json_lines: options.Json = False,
) -> None:
    """Study which question finds which change in the images, and whether that foretells wrong answers; a page of plots."""
    outputs.folder(out)
    keep_freed_memory()
    from offmap.benchmark.study_page import study as run
    from offmap.report.ranking import refuse_foreign

    refuse_foreign(out / "index.html")
    with progress(json_lines) as tell:
        found = run(study, out=out, data=data, encoder=encoder or "builtin", jobs=jobs, device=device, progress=tell)
    if json_lines:
        tau = None if found.tau is None else found.tau.value
        best = {name: each.task for name, each in found.shifts.items()}
        emit({"event": "done", "out": str(out), "best_task": best, "differs": found.differs, "kendall_tau": tau})
        return
    shifts, tasks = list(found.shifts), list(found.accuracy)
    rows = [[task, *(f"{found.shifts[shift].means[task]:.3f}" for shift in shifts)] for task in tasks]
    show(("task", *shifts), rows, title="AUROC of each task, mean over methods")
    for line in (*found.sentences, *(f"Note: {text}" for text in found.warnings)):
        say(line)
    say(f"All of it: {out / 'index.html'}")
