"""offmap benchmark: detectors compared on a suite of image sets."""

from pathlib import Path
from typing import Annotated

import typer

from offmap.cli import options, outputs
from offmap.cli.exits import say
from offmap.cli.progress import emit, progress
from offmap.cli.tables import show
from offmap.core.allocator import keep_freed_memory

Suite = Annotated[
    str, typer.Argument(metavar="SUITE", help="A .toml file, or the name of a suite that comes with offmap.", show_default=False)
]
Data = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="Folder that the paths of the suite are relative to, in place of its own.")
]
Methods = Annotated[str, typer.Option("--methods", metavar="A,B", help="Detectors to compare; all if not given.")]
RecipeName = Annotated[str, typer.Option("--recipe", metavar="NAME|FILE.toml", help="Whose preparation and file forms are used.")]
Seeds = Annotated[int | None, typer.Option("--seeds", metavar="N", min=1, help="Divisions of each set; as the suite says if not given.")]
SHOWN = 15
"""Methods on the terminal."""


def benchmark(
    suite: Suite,
    *,
    out: options.Out,
    data: Data = None,
    methods: Methods = "",
    encoder: options.Encoder = None,
    recipe: RecipeName = "standard",
    seeds: Seeds = None,
    jobs: options.Jobs = None,
    device: options.Device = "auto",
    trust_classifier: options.TrustClassifier = False,
    json_lines: options.Json = False,
) -> None:
    """Compare detectors on a suite: tables with intervals and costs, plots, a page. Run again to go on after an interruption."""
    outputs.folder(out)
    keep_freed_memory()
    from offmap.benchmark.compare import compare
    from offmap.report.ranking import refuse_foreign

    refuse_foreign(out / "index.html")
    with progress(json_lines) as tell:
        found = compare(
            suite,
            out=out,
            data=data,
            methods=[name.strip() for name in methods.split(",") if name.strip()],
            encoder=encoder,
            recipe=recipe,
            seeds=seeds,
            jobs=jobs,
            device=device,
            trust_classifier=trust_classifier,
            progress=tell,
        )
    ran, rest = len(found.summary), len({row["method"] for row in found.results.rows if row["status"] != "ok"} - {""})
    if json_lines:
        emit({"event": "done", "out": str(out), "methods": ran, "not_run": rest, "rows": len(found.results.rows)})
        return
    kinds = [kind for kind in ("near", "covariate", "far", "corruption") if any(kind in line for line in found.summary)]
    rows = [[line["method"], *(f"{line[kind]:.3f}" if kind in line else "" for kind in kinds)] for line in found.summary[:SHOWN]]
    show(("method", *kinds), rows, title=f"Mean AUROC, the best {min(SHOWN, ran)} of {ran} methods")
    say(
        f"{rest} {'method was' if rest == 1 else 'methods were'} not run for some set; summary.md says why. All of it: {out / 'index.html'}"
    )
